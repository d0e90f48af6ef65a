"""Parse an ONNX, set profile and precision, build."""

import time
from dataclasses import dataclass, replace
from typing import Any, Optional

from runtime.engine.config import MIB, EngineConfig
from runtime.engine.layer_precision import constrain_layers
from runtime.engine.library import Library, last, open_library
from runtime.engine.lowering import engine_model
from runtime.engine.plugins import PluginLibrary
from runtime.engine.profiles import profile_shapes
from runtime.engine.progress import BuildLog, Monitor
from runtime.engine.unquantized import leave_float, without_kernel
from runtime.precision.geometry import default_plan
from runtime.precision.plan import PrecisionGroup, PrecisionPlan
from runtime.quantization import is_quantized

# Builds of a quantized network, each with the nodes in float for which the last one had no INT8 kernel.
_MOST_BUILDS = 6


@dataclass(frozen=True)
class BuiltEngine:
    """An engine in memory.

    Attributes:
        data: the serialised engine.
        timing_cache: of the builder, for the next build; empty where the release has none.
        seconds: the build took.
        num_layers: of the network that was parsed.
        num_float32: of these, layers that were told to stay FP32.
        warnings: TensorRT's, each once; before them which nodes of a quantized network had to stay float.
    """

    data: bytes
    timing_cache: bytes
    seconds: float
    num_layers: int
    num_float32: int
    warnings: tuple[str, ...]


def build_engine(
    model: Any,
    config: EngineConfig,
    *,
    plan: Optional[PrecisionPlan] = None,
    plugins: Optional[PluginLibrary] = None,
    timing_cache: bytes = b"",
    monitor: Optional[Monitor] = None,
    echo: Any = None,
    library: Optional[Library] = None,
) -> BuiltEngine:
    """Build an engine.

    Args:
        model: an ``onnx.ModelProto``, of ours or any other.
        config: what it is asked to be.
        plan: nodes that stay FP32 where ``config.precision`` is ``fp16``; None leaves every layer free.
        plugins: the plugin library, loaded.
        timing_cache: of an earlier build; one of another release or GPU is ignored.
        monitor: called with (phase, steps done, steps in all).
        echo: called with every line that TensorRT logs.
        library: TensorRT; None opens the installed one.

    Raises:
        ValueError: the model has an operator that TensorRT or the plugins do not have, or the profile does not fit.
            The message lists all of the parser's errors.
        RuntimeError: TensorRT failed to build (no kernel fits, memory ran out).
    """
    library = library or open_library()
    log = BuildLog(None if library.tensorrt.has_progress_monitor else monitor, echo)
    start = time.monotonic()
    with library.listening(log):
        check_precision(model, config)
        builder = library.tensorrt.trt.Builder(library.logger)
        graph = engine_model(
            model,
            plugins.ops if plugins else (),
            library.tensorrt,
            attributes=plugins.attributes if plugins else None,
            kept=plan.nodes if plan is not None else (),
        )
        if plan is not None:
            plan = with_inlined_nodes(plan, model, graph)
        if config.precision == "fp16" and library.tensorrt.strongly_typed:
            graph = _typed(graph, plan)
        left_float: list[str] = []
        for _ in range(_MOST_BUILDS):
            network, parser = _parsed(graph, builder, library, log)
            builder_config = _builder_config(builder, network, config, library)
            num_float32 = 0
            if config.follows_plan and plan is not None and not library.tensorrt.strongly_typed:
                num_float32 = constrain_layers(network, graph, plan, library.tensorrt)
            library.tensorrt.set_precision(builder_config, config.precision, constrained=num_float32 > 0)
            library.tensorrt.set_timing_cache(builder_config, timing_cache)
            keep_alive = monitor and library.tensorrt.set_progress(builder_config, monitor)
            data = builder.build_serialized_network(network, builder_config)
            del keep_alive, parser
            if data is not None or config.precision != "int8":
                break
            timing_cache = library.tensorrt.timing_cache(builder_config)
            more = leave_float(graph, without_kernel(log.errors, graph))
            if not more:
                break
            left_float += more
        if data is None:
            # Of bodies in the place of plugins, some have sizes that no release of TensorRT takes.
            inlined = [f.name for f in model.functions if plugins is None or f.name not in plugins.ops]
            bodies = f"; without a plugin for {', '.join(inlined)}: `make plugins`" if inlined else ""
            raise RuntimeError(
                f"{library.tensorrt.name}: expected an engine, found: {last(log.errors)}{bodies}; --verbose shows the "
                "whole log"
            )
        return BuiltEngine(
            data=bytes(memoryview(data)),
            timing_cache=library.tensorrt.timing_cache(builder_config),
            seconds=time.monotonic() - start,
            num_layers=network.num_layers,
            num_float32=num_float32,
            warnings=(*(f"no INT8 kernel, left float: {name}" for name in left_float), *log.warnings),
        )


def check_precision(model: Any, config: EngineConfig) -> None:
    """Refuse a precision that the file does not have.

    Raises:
        ValueError: INT8 of a float file, or another precision of a quantized one.
    """
    if is_quantized(model) == (config.precision == "int8"):
        return
    if config.precision == "int8":
        raise ValueError(
            "--precision int8: expected an ONNX with QuantizeLinear and DequantizeLinear, found a float one; make one "
            "with `python -m export.quantize`"
        )
    raise ValueError(
        f"--precision {config.precision}: expected a float ONNX, found a quantized one; give `--precision int8`, or "
        "the file before it was quantized"
    )


def with_inlined_nodes(plan: PrecisionPlan, model: Any, graph: Any) -> PrecisionPlan:
    """Return the plan of ``model`` for ``graph``, which has the insides of inlined operators instead of their nodes."""
    there = {node.name for node in graph.graph.node}
    kept = (replace(group, nodes=tuple(n for n in group.nodes if n in there)) for group in plan.groups)
    added = default_plan(graph).nodes - {node.name for node in model.graph.node}
    group = PrecisionGroup(
        "inlined operators",
        "RoI coordinates, the best k, NMS and pasting without a plugin",
        tuple(sorted(added)),
    )
    return PrecisionPlan(tuple(g for g in (*kept, group) if g.nodes))


def _typed(graph: Any, plan: Optional[PrecisionPlan]) -> Any:
    from runtime.precision.typed import fp16_model  # needs onnxruntime

    return fp16_model(graph, plan or PrecisionPlan(()))


def _parsed(graph: Any, builder: Any, library: Library, log: BuildLog) -> tuple[Any, Any]:
    """Return the network that the parser makes of the ONNX, and the parser, whose weights the network reads."""
    network = library.tensorrt.new_network(builder)
    parser = library.tensorrt.trt.OnnxParser(network, library.logger)
    if not parser.parse(graph.SerializeToString()):
        errors = [_described(parser.get_error(i), graph) for i in range(parser.num_errors)]
        listed = "\n  ".join(errors or [last(log.errors)])
        raise ValueError(
            f"model: expected an ONNX that {library.tensorrt.name} parses, found {_counted(errors)}; an operator it "
            f"lacks needs a plugin (`make plugins`), an opset above 17 TensorRT 10:\n  {listed}"
        )
    return network, parser


def _counted(errors: list[str]) -> str:
    return f"{len(errors)} error{'' if len(errors) == 1 else 's'}"


def _described(error: Any, graph: Any) -> str:
    text = " ".join(error.desc().split())
    # -1: not about one node.
    if not 0 <= error.node() < len(graph.graph.node):
        return text
    node = graph.graph.node[error.node()]
    # The text need not name the operator: it may be just "false".
    return f"{node.op_type} (node {error.node()}, {node.name or ', '.join(node.output)}): {text}"


def _builder_config(builder: Any, network: Any, config: EngineConfig, library: Library) -> Any:
    tensorrt = library.tensorrt
    result = builder.create_builder_config()
    tensorrt.set_detailed_names(result)
    if config.workspace_mib is not None:
        tensorrt.set_workspace(result, config.workspace_mib * MIB)
    if config.tactic_sources is not None:
        tensorrt.set_tactic_sources(result, config.tactic_sources)
    for batch in config.profiles:
        profile = builder.create_optimization_profile()
        for index in range(network.num_inputs):
            tensor = network.get_input(index)
            profile.set_shape(tensor.name, *profile_shapes(tensor.name, tuple(tensor.shape), config, batch))
        if result.add_optimization_profile(profile) < 0:
            raise ValueError(f"profile: expected ranges that {tensorrt.name} takes, found {batch}")
    return result
