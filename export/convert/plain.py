"""The ONNX itself: with another input, or without local functions."""

from pathlib import Path

from export.convert.source import Made, Options, Source, need_onnx, word
from runtime.graphs.inlining import inlined
from runtime.graphs.load import save_model

FILE = "model.onnx"


def convert(source: Source, folder: Path, options: Options) -> Made:
    """Write ``model.onnx`` in standard operators alone."""
    del options
    save_model(inlined(need_onnx(source, "onnx")), folder / FILE)
    command = f"python -m runtime.infer --model {word(folder / FILE)} photos/"
    return Made({FILE: "the ONNX in standard operators alone"}, (command,))
