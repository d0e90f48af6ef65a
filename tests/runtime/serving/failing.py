"""What has a model fail in a process of Ray's: ``install`` runs in each of them before anything else."""

import os
from pathlib import Path
from typing import Any

VARIABLE = "MASKRCNN_TEST_FAILING"


def install() -> None:
    """Have the models of the process fail whose number stands in the file that the environment names."""
    from runtime.backends import onnxruntime

    file = Path(os.environ[VARIABLE])
    run = onnxruntime.OnnxRuntimeBackend.run

    def failing(self: Any, *arguments: Any) -> Any:
        if file.exists() and int(file.read_text()) == os.getpid():
            raise RuntimeError("the device was lost")
        return run(self, *arguments)

    onnxruntime.OnnxRuntimeBackend.run = failing
