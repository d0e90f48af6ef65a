"""Engines on disk: reused while they are good, rebuilt when they are stale, by one process at a time."""

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any, Callable, Optional, Union

from runtime.cuda.binding import Cuda
from runtime.engine.builder import build_engine
from runtime.engine.config import EngineConfig
from runtime.engine.library import Library
from runtime.engine.plugins import PluginLibrary
from runtime.engine.profiles import with_default_sizes
from runtime.engine.progress import Monitor
from runtime.engine.sidecar import Provenance, Sidecar, sidecar_path
from runtime.files import sha256_of, write_whole
from runtime.graphs.load import load_onnx, metadata_of
from runtime.precision.choice import chosen_plan
from runtime.precision.plan import PrecisionPlan

REBUILD = ("auto", "never", "always")
SUFFIX = ".engine"


@dataclass(frozen=True)
class EngineRequest:
    """An engine that someone wants.

    Attributes:
        onnx: path of the model.
        engine: path of the engine.
        config: None takes any engine of the model that is there, and the defaults where one has to be built.
        plan: path of a precision plan; None takes the one beside the ONNX, or else the graph's own.
        use_plan: False leaves every layer's precision to TensorRT.
        timing_cache: path of a file that builds read and extend; None keeps none.
        batch: a number of images that the engine has to take at once, where ``config`` is None.
    """

    onnx: Path
    engine: Path
    config: Optional[EngineConfig] = None
    plan: Optional[Path] = None
    use_plan: bool = True
    timing_cache: Optional[Path] = None
    batch: Optional[int] = None


@dataclass(frozen=True)
class Machine:
    """Where engines are built and run: TensorRT, the device, and the plugin library if there is one."""

    library: Library
    cuda: Cuda
    plugins: Optional[PluginLibrary]

    def provenance(self, onnx_sha256: str) -> Provenance:
        """Return the provenance of an engine that this machine builds from an ONNX."""
        device = self.cuda.device()
        return Provenance(
            onnx_sha256=onnx_sha256,
            plugins_sha256=self.plugins.sha256 if self.plugins else None,
            tensorrt=self.library.tensorrt.name,
            gpu=device["name"],
            compute_capability=device["compute_capability"],
        )


def engine_path(onnx: Union[str, Path]) -> Path:
    """Return where a model's engine goes: ``maskrcnn.onnx`` -> ``maskrcnn.engine``."""
    return Path(onnx).with_suffix(SUFFIX)


def ensure_engine(
    request: EngineRequest,
    machine: Machine,
    rebuild: str = "auto",
    *,
    monitor: Optional[Monitor] = None,
    echo: Optional[Callable[[str], None]] = None,
    notify: Callable[[str], None] = lambda text: None,
) -> Sidecar:
    """Have a good engine on disk, and return its sidecar.

    Several processes may ask for the same engine at once: one builds, the others wait and take what it built.

    Args:
        request: what is wanted.
        machine: this one.
        rebuild: ``auto`` builds what is missing or stale, ``never`` refuses it, ``always`` builds.
        monitor, echo: see ``build_engine``.
        notify: called with a line on what is done and why.

    Raises:
        FileNotFoundError: no such ONNX; or ``never``, and no engine.
        ValueError: unusable arguments or ONNX; or ``never``, and the engine is stale: the message names every field
            that differs.
        RuntimeError: TensorRT failed to build.
    """
    if rebuild not in REBUILD:
        raise ValueError(f"--rebuild: expected one of {', '.join(REBUILD)}, found {rebuild!r}")
    if not request.onnx.is_file():
        raise FileNotFoundError(
            f"model {request.onnx}: expected an ONNX file, found nothing; make one with `python -m export.maskrcnn`"
        )
    if rebuild != "always":
        # Without the lock, which a read-only folder cannot hold.
        reasons = stale_reasons(request, machine)
        if not reasons:
            return Sidecar.load(request.engine)
        if rebuild == "never":
            raise _stale_error(request.engine, reasons)
    with _locked(request.engine, notify):
        # Another process may have built it meanwhile.
        reasons = ["--rebuild always"] if rebuild == "always" else stale_reasons(request, machine)
        if not reasons:
            return Sidecar.load(request.engine)
        notify(f"building {request.engine}: {'; '.join(reasons)}")
        return _build(request, machine, monitor, echo)


def check_engine(engine: Union[str, Path], machine: Machine) -> Sidecar:
    """Return the sidecar of an engine that this machine can run.

    Raises:
        FileNotFoundError: no engine or no sidecar.
        ValueError: built elsewhere or from other things than lie here now, or damaged; the message names every field.
    """
    engine = Path(engine)
    if not engine.is_file():
        raise FileNotFoundError(
            f"engine {engine}: expected a file, found nothing; build it with `python -m runtime.build model.onnx`"
        )
    sidecar = Sidecar.load(engine)
    onnx = engine.parent / sidecar.onnx
    onnx_sha256 = sha256_of(onnx) if onnx.is_file() else sidecar.provenance.onnx_sha256
    reasons = _damage(engine, sidecar) + machine.provenance(onnx_sha256).differences(sidecar.provenance)
    if reasons:
        raise _stale_error(engine, reasons)
    return sidecar


def stale_reasons(request: EngineRequest, machine: Machine) -> list[str]:
    """Return in words why the engine on disk is not the one that is asked for; empty if it is."""
    if not request.engine.is_file():
        return ["there is none yet"]
    try:
        sidecar = Sidecar.load(request.engine)
    except (OSError, ValueError) as error:
        return [str(error)]
    reasons = _damage(request.engine, sidecar)
    reasons += machine.provenance(sha256_of(request.onnx)).differences(sidecar.provenance)
    if request.config is not None:
        wanted = request.config
        if sidecar.metadata is not None:
            wanted = with_default_sizes(wanted, sidecar.metadata)
        reasons += _config_differences(wanted, sidecar.config)
        if wanted.precision == "fp16" and not reasons:
            plan = _plan_of(request, load_onnx(request.onnx))
            if _plan_sha256(plan) != sidecar.plan_sha256:
                reasons.append("precision plan: expected the one asked for, found another")
    elif (
        request.batch is not None and not sidecar.config.batch[0] <= request.batch <= sidecar.config.batch[2]
    ):
        low, _, high = sidecar.config.batch
        reasons.append(f"batch: expected a profile with {request.batch}, found {low} to {high}")
    return reasons


def _plan_of(request: EngineRequest, model: Any) -> Optional[PrecisionPlan]:
    return chosen_plan(request.onnx, model, request.plan) if request.use_plan else None


def _build(
    request: EngineRequest,
    machine: Machine,
    monitor: Optional[Monitor],
    echo: Optional[Callable[[str], None]],
) -> Sidecar:
    onnx_sha256 = sha256_of(request.onnx)
    model = load_onnx(request.onnx)
    metadata = metadata_of(model)
    config = request.config or _default_config(request.batch)
    if metadata is not None:
        config = with_default_sizes(config, metadata)
    plan = _plan_of(request, model) if config.precision == "fp16" else None
    cache = request.timing_cache
    built = build_engine(
        model,
        config,
        plan=plan,
        plugins=machine.plugins,
        timing_cache=cache.read_bytes() if cache and cache.is_file() else b"",
        monitor=monitor,
        echo=echo,
        library=machine.library,
    )
    sidecar = Sidecar(
        engine_sha256=sha256(built.data).hexdigest(),
        onnx=_relative(request.onnx, request.engine.parent),
        provenance=machine.provenance(onnx_sha256),
        config=config,
        plan_sha256=_plan_sha256(plan),
        metadata=metadata,
        build={
            "seconds": round(built.seconds, 2),
            "bytes": len(built.data),
            "network_layers": built.num_layers,
            "layers_kept_fp32": built.num_float32,
            "warnings": list(built.warnings),
        },
    )
    # The sidecar last: until it is there, the engine does not match the old one's SHA-256 and counts as stale.
    write_whole(request.engine, built.data)
    sidecar.save(request.engine)
    if cache and built.timing_cache:
        write_whole(cache, built.timing_cache)
    return sidecar


def _default_config(batch: Optional[int]) -> EngineConfig:
    return (
        EngineConfig()
        if batch is None
        else EngineConfig(batch=(1, batch, max(batch, EngineConfig().batch[2])))
    )


def _damage(engine: Path, sidecar: Sidecar) -> list[str]:
    found = sha256_of(engine)
    if found == sidecar.engine_sha256:
        return []
    return [
        f"engine file: expected {sidecar.build.get('bytes', '?')} bytes of SHA-256 {sidecar.engine_sha256[:12]}, found "
        f"{engine.stat().st_size} bytes of {found[:12]}: truncated, or not the file that {sidecar_path(engine).name} "
        "describes"
    ]


def _config_differences(wanted: EngineConfig, found: EngineConfig) -> list[str]:
    left, right = wanted.to_dict(), found.to_dict()
    return [
        f"{name}: expected {left[name]}, found {right[name]}" for name in left if left[name] != right[name]
    ]


def _plan_sha256(plan: Optional[PrecisionPlan]) -> Optional[str]:
    return None if plan is None else sha256(plan.to_json().encode()).hexdigest()


def _stale_error(engine: Path, reasons: list[str]) -> Exception:
    kind = FileNotFoundError if not engine.is_file() else ValueError
    return kind(
        f"engine {engine}: {'; '.join(reasons)}; build it again with `python -m runtime.build`, or use --rebuild auto"
    )


def _relative(path: Path, folder: Path) -> str:
    path, folder = path.resolve(), folder.resolve()
    return path.name if path.parent == folder else str(path)


@contextmanager
def _locked(engine: Path, notify: Callable[[str], None]) -> Iterator[None]:
    """Hold the engine's lock file; another process that has it is waited for."""
    engine.parent.mkdir(parents=True, exist_ok=True)
    with open(f"{engine}.lock", "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            notify(f"waiting for another process that builds {engine}")
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield
