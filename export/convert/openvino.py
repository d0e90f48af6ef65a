"""OpenVINO's IR: ``model.xml`` and ``model.bin``, weights as they are."""

import tempfile
from pathlib import Path
from typing import Any

from export.convert.source import Made, Options, Source, need_onnx, word
from runtime.backends.openvino import import_openvino, read_onnx
from runtime.files import write_whole

XML, BIN = "model.xml", "model.bin"


def convert(source: Source, folder: Path, options: Options) -> Made:
    """Write the IR, with the ONNX's metadata in its ``rt_info``."""
    del options
    onnx_model = need_onnx(source, "openvino")
    openvino = import_openvino()
    model = read_onnx(onnx_model)
    for entry in onnx_model.metadata_props:
        model.set_rt_info(entry.value, [entry.key])
    _save(openvino, model, folder)
    files = {XML: "the graph, and the metadata in its rt_info", BIN: "the weights, FP32 as in the ONNX"}
    path = word(folder / XML)
    commands = (
        f"python -m runtime.infer --model {path} photos/",
        f"python -m runtime.compare {word(source.path)} {path} --images photos/",
        f"benchmark_app -m {path} -d CPU -infer_precision f32",
    )
    notes = (
        'In code of your own: `core.compile_model("model.xml", "CPU", {"INFERENCE_PRECISION_HINT": "f32"})`; OpenVINO '
        "takes bfloat16 where the processor has it unless it is told.",
    )
    return Made(files, commands, notes)


def _save(openvino: Any, model: Any, folder: Path) -> None:
    """Write both files whole."""
    with tempfile.TemporaryDirectory() as temporary:
        path = Path(temporary) / XML
        # Its own default rounds the weights to FP16.
        openvino.save_model(model, path, compress_to_fp16=False)
        write_whole(folder / BIN, path.with_suffix(".bin").read_bytes())
        write_whole(folder / XML, path.read_bytes())
