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
from runtime.engine.inspection import count_by_precision, dense_flops, dense_share, layers_from
from runtime.engine.library import open_library
from runtime.engine.plugins import load_plugins
from runtime.engine.progress import Monitor
from runtime.engine.session import EngineSession
from runtime.engine.sidecar import Sidecar


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
    monitor: Optional[Monitor] = None,
    echo: Optional[Callable[[str], None]] = None,
    notify: Callable[[str], None] = lambda text: None,
) -> EngineBuild:
    """Build a TensorRT engine, or keep the one that is there and still good.

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
        monitor, echo: see ``runtime.engine.builder.build_engine``.
        notify: called with a line on what is done and why.

    Raises:
        FileNotFoundError: no such file.
        ValueError: unusable arguments or ONNX; or ``never``, and the engine is stale, by field.
        RuntimeError: no TensorRT, no CUDA, no GPU, or TensorRT failed to build.
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
    return EngineBuild(ready.path, _inspected(resolved, machine, ready))


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
    if "layers" in sidecar.build:
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
    figures = {
        "layers": len(layers),
        "layers_by_precision": count_by_precision(layers),
        "dense_flops_share": shares,
    }
    inspected = replace(sidecar, build={**sidecar.build, **figures})
    if Sidecar.load(engine.path) == sidecar:  # and not of an engine that was built meanwhile
        inspected.save(engine.path)
    return inspected
