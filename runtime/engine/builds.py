"""An engine file from an ONNX file, in one call."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Callable, Optional, Union

from runtime.cuda.binding import open_cuda
from runtime.engine.config import EngineConfig
from runtime.engine.files import (
    EngineRequest,
    Machine,
    ReadyEngine,
    ResolvedRequest,
    engine_path,
    ready_engine,
    resolve,
)
from runtime.engine.inspection import (
    asked_precisions,
    count_by_precision,
    dense_flops,
    dense_share,
    layers_from,
    node_precisions,
    slower_shares,
)
from runtime.engine.library import open_library
from runtime.engine.plugins import load_plugins
from runtime.engine.progress import Monitor
from runtime.engine.session import EngineSession
from runtime.engine.sidecar import Sidecar
from runtime.messages import listed

# Of the dense arithmetic: what may run slower than asked before an engine is refused.
MAX_SLOWER = 0.05
_NUM_NAMED = 5


@dataclass(frozen=True)
class EngineBuild:
    """An engine that is ready to run.

    Attributes:
        path: of the file; its sidecar is beside it.
        sidecar: what it was built from, and what is in it.
    """

    path: Path
    sidecar: Sidecar


def build_engine(
    model: Union[str, Path],
    engine: Optional[Union[str, Path]] = None,
    *,
    config: Optional[EngineConfig] = None,
    plan: Optional[Union[str, Path]] = None,
    use_plan: bool = True,
    timing_cache: Optional[Union[str, Path]] = None,
    plugins: Optional[Union[str, Path]] = None,
    device_index: int = 0,
    rebuild: str = "auto",
    allow_slower: bool = False,
    monitor: Optional[Monitor] = None,
    echo: Optional[Callable[[str], None]] = None,
    notify: Callable[[str], None] = lambda text: None,
) -> EngineBuild:
    """Build a TensorRT engine, or keep the one that is there and still good.

    What its layers run in is read from it, and written into the sidecar.

    Args:
        model: path of the ONNX.
        engine: path of the engine; None: beside the model.
        config: what it is asked to be; None: the defaults of ``EngineConfig``.
        plan: path of a precision plan; None takes the one beside the ONNX, or else the graph's own.
        use_plan: False leaves every layer's precision to TensorRT.
        timing_cache: path of a file that builds read and extend; None keeps none.
        plugins: path of the plugin library; None looks where it is built.
        device_index: of the GPU.
        rebuild: ``auto`` builds what is missing or stale, ``never`` refuses it, ``always`` builds.
        allow_slower: take an engine in which more of the dense arithmetic than ``MAX_SLOWER`` runs in a slower
            precision than ``config.precision`` and the plan ask for.
        monitor, echo: see ``runtime.engine.builder.build_engine``.
        notify: called with a line on what is done and why.

    Raises:
        FileNotFoundError: no such file.
        ValueError: unusable arguments or ONNX; or ``never``, and the engine is stale, by field.
        RuntimeError: no TensorRT, no CUDA, no GPU, or TensorRT failed to build, or built an engine that is slower than
            asked, which stays where it is.
    """
    library = open_library()
    machine = Machine(library, open_cuda(device_index), load_plugins(plugins, library.tensorrt))
    notify(described(machine))
    request = EngineRequest(
        onnx=Path(model),
        engine=engine_path(model) if engine is None else Path(engine),
        config=config or EngineConfig(),
        plan=None if plan is None else Path(plan),
        use_plan=use_plan,
        timing_cache=None if timing_cache is None else Path(timing_cache),
    )
    resolved = resolve(request)
    ready = ready_engine(resolved, machine, rebuild, monitor=monitor, echo=echo, notify=notify)
    built = EngineBuild(ready.path, _inspected(resolved, machine, ready))
    if not allow_slower:
        _check_speed(built)
    return built


def _check_speed(built: EngineBuild) -> None:
    slower = built.sidecar.build.get("slower_than_asked") or {}
    share = sum(slower.values())
    if share <= MAX_SLOWER:
        return
    found = built.sidecar.build.get("node_precisions") or {}
    named = [f"{node} {value:.1%} ({found.get(node, '?')})" for node, value in slower.items()]
    raise RuntimeError(
        f"engine {built.path}: expected {1 - MAX_SLOWER:.0%} of the dense arithmetic in the precision that is asked "
        f"for ({built.sidecar.config.precision}), found {share:.1%} slower: {listed(named, _NUM_NAMED)}; TensorRT has "
        "no faster kernel for them here, or something else keeps them. The engine is there and works: --allow-slower "
        "takes it"
    )


def described(machine: Machine) -> str:
    """Return what builds, where, in words."""
    device = machine.cuda.device()
    plugins = (
        f"plugins {machine.plugins.path}" if machine.plugins else "no plugin library: standard operators only"
    )
    return f"{machine.library.tensorrt.name}, {device['name']} ({device['compute_capability']}), {plugins}"


def _inspected(resolved: ResolvedRequest, machine: Machine, engine: ReadyEngine) -> Sidecar:
    """Load the engine, which proves that it can be, and add what is in it to the sidecar."""
    sidecar = engine.sidecar
    if "node_precisions" in sidecar.build:
        return sidecar
    with EngineSession(engine.data, library=machine.library, cuda=machine.cuda) as session:
        layers = layers_from(session.layer_information())
    best = {
        name: limits[1]
        for name, limits in (("height", sidecar.config.height), ("width", sidecar.config.width))
        if limits
    }
    flops = dense_flops(resolved.model, best)
    shares = {p: round(dense_share(layers, flops, p), 4) for p in ("int8", "fp16", "fp32")}
    plan = resolved.plan
    asked = asked_precisions(resolved.model, sidecar.config.precision, plan.nodes if plan else ())
    found = node_precisions(layers, flops)
    figures = {
        "node_precisions": found,
        "slower_than_asked": {n: round(v, 6) for n, v in slower_shares(found, asked, flops).items()},
        "layers": len(layers),
        "layers_by_precision": count_by_precision(layers),
        "dense_flops_share": shares,
    }
    inspected = replace(sidecar, build={**sidecar.build, **figures})
    if Sidecar.load(engine.path) == sidecar:  # and not of an engine that was built meanwhile
        inspected.save(engine.path)
    return inspected
