"""``python -m export.graft`` as a function."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Optional, Union

import onnx

from export.arguments import check_output, failed_path
from export.graft.api import Grafted, grafted
from export.graft.head import Head
from export.graft.verify import Verification, verify
from runtime import embedded
from runtime.files import refuse_inputs, working_folder, write_whole
from runtime.image_files import find_images


class DifferentError(RuntimeError):
    """The file finds something else than the NumPy decoder does."""

    def __init__(self, message: str, verification: Verification) -> None:
        super().__init__(message)
        self.verification = verification


def graft(
    network: Union[str, Path],
    head: Optional[Union[str, Head]],
    output: Union[str, Path],
    *,
    images: Sequence[Union[str, Path]] = (),
    check: bool = True,
    **options: Any,
) -> tuple[Grafted, Optional[Verification]]:
    """Append a head to a detector's ONNX, write the result, and hold it against a decoder in NumPy.

    Args:
        network: the ONNX.
        head: one of ``export.graft.head.head_names()``, a JSON file, or a ``Head``.
        output: the file to write; where it differs, ``NAME.failed.onnx``.
        images: files to verify with, folders or patterns; those that come with the tool where there are none.
        check: verify it.
        options: see ``grafted``.

    Raises:
        OSError, ValueError: see ``grafted``.
        DifferentError: the file differs from the decoder.
    """
    output = Path(output)
    check_output(output)
    refuse_inputs(output, [network])
    made = grafted(network, head, **options)
    if not check:
        write_whole(output, made.model.SerializeToString())
        return made, None
    paths = find_images(map(str, images)) if images else list(embedded.VERIFICATION_IMAGES)
    with working_folder() as folder:
        path = folder / "grafted.onnx"
        onnx.save(made.model, path)
        verification = verify(made, path, paths)
    if verification.differences:
        failed = failed_path(output)
        write_whole(failed, made.model.SerializeToString())
        raise DifferentError(
            f"{failed}: expected what the NumPy decoder of head {made.head.name} finds, found a file that differs: "
            f"{verification.differences[0]}; the output was not written",
            verification,
        )
    write_whole(output, made.model.SerializeToString())
    return made, verification
