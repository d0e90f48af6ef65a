"""The ONNX as TensorRT reads it, and the command of ``trtexec`` that builds its engine."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from export.convert.source import Made, Options, Source, need_onnx, word
from runtime.contract import images_shape
from runtime.engine.builder import with_inlined_nodes
from runtime.engine.compat import TensorRT, named_release
from runtime.engine.config import EngineConfig
from runtime.engine.lowering import engine_model
from runtime.engine.profiles import with_default_sizes
from runtime.graphs.load import save_model
from runtime.graphs.operators import PLUGINS
from runtime.metadata import ModelMetadata
from runtime.precision.choice import chosen_plan
from runtime.precision.typed import fp16_model
from runtime.quantization import is_quantized

FILE, ENGINE = "model.onnx", "model.plan"
# Since when the names are these.
_STATIC_PLUGINS = _SKIP_INFERENCE = (8, 6)
# Pixels as inputs are documented of networks from here on.
_UINT8_INPUTS = (10,)


def convert(source: Source, folder: Path, options: Options) -> Made:
    """Write the ONNX with the plugins' nodes, and say how it becomes an engine."""
    tensorrt = named_release(options.tensorrt)
    if source.metadata.input != "float32" and tensorrt.release < _UINT8_INPUTS:
        raise ValueError(
            f"--input uint8: expected TensorRT 10 or later, found {options.tensorrt}, whose inputs are floats; leave "
            "--input out"
        )
    model = lowered(source, options, "trtexec")
    save_model(model, folder / FILE)
    build = build_command(source, folder, options, tensorrt)
    notes = [
        f"Written for TensorRT {options.tensorrt}; the plugin library has to be of the same major version. trtexec "
        "itself has not been run.",
        f"`{ENGINE}` has no sidecar: Triton and trtexec take it, `runtime.infer` wants one of `python -m "
        "runtime.build`, which also keeps in FP32 what FP16 would spoil.",
    ]
    run = f"trtexec --loadEngine={word(folder / ENGINE)} {_plugins(options, tensorrt)}"
    return Made({FILE: "the ONNX, with a node for each plugin"}, (build, run), tuple(notes))


def lowered(source: Source, options: Options, target: str) -> Any:
    """Return the ONNX that the release's parser reads, in the precision that is asked for.

    Raises:
        ValueError: an engine, a quantized file, or what the release cannot be told.
    """
    model, tensorrt = need_onnx(source, target), named_release(options.tensorrt)
    if is_quantized(model):
        raise ValueError(
            f"model {source.path}: expected a float ONNX for {target}, found a quantized one; build it with "
            "`python -m runtime.build --precision int8`"
        )
    graph = engine_model(model, PLUGINS, tensorrt)
    if options.precision == "fp32":
        return graph
    if not tensorrt.strongly_typed:
        raise ValueError(
            f"--precision fp16: expected TensorRT 10.12 or later, which takes types from the file, found "
            f"{options.tensorrt}; build with `python -m runtime.build`, which tells each layer, or leave it out"
        )
    plan = with_inlined_nodes(chosen_plan(source.path, model), model, graph)
    return fp16_model(graph, plan)


def build_command(source: Source, folder: Path, options: Options, tensorrt: TensorRT) -> str:
    """Return the command in the release's spelling."""
    words = [
        "trtexec",
        f"--onnx={word(folder / FILE)}",
        f"--saveEngine={word(folder / ENGINE)}",
        _plugins(options, tensorrt),
        *(
            f"--{kind}Shapes={shapes}"
            for kind, shapes in zip(("min", "opt", "max"), _shapes(source, options))
        ),
        "--noTF32",
        "--skipInference" if tensorrt.release >= _SKIP_INFERENCE else "--buildOnly",
    ]
    if tensorrt.strongly_typed:
        words.append("--stronglyTyped")
    return " ".join(words)


def _plugins(options: Options, tensorrt: TensorRT) -> str:
    option = "--staticPlugins" if tensorrt.release >= _STATIC_PLUGINS else "--plugins"
    return f"{option}={word(options.plugins)}"


def _shapes(source: Source, options: Options) -> list[str]:
    heights, widths = size_limits(source, options)
    return [
        _spec(source.metadata, (height, width), batch)
        for height, width, batch in zip(heights, widths, options.batch)
    ]


def size_limits(source: Source, options: Options) -> tuple[Sequence[int], Sequence[int]]:
    """Return the least, best and largest height, and width, px.

    Raises:
        ValueError: nothing bounds them.
    """
    metadata = source.metadata
    if metadata.size is not None:
        return (metadata.size[0],) * 3, (metadata.size[1],) * 3
    config = EngineConfig(batch=options.batch, height=options.height, width=options.width)
    config = with_default_sizes(config, replace(metadata, input="float32"))
    if config.height is None or config.width is None:
        raise ValueError(
            f"model {source.path}: expected the sizes that its images have, found a test pipeline that does not bound "
            "them; give --size MIN OPT MAX"
        )
    return config.height, config.width


def _spec(metadata: ModelMetadata, size: tuple[int, int], batch: int) -> str:
    shape = images_shape(metadata, size, batch)
    return f"images:{'x'.join(map(str, shape))},image_sizes:{batch}x2"
