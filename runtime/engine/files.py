"""Engines on disk: reused while they are good, rebuilt when they are stale, by one process at a time."""

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from typing import IO, Any, Callable, Optional, Union

from runtime.contract import EXPORT_COMMAND, check_takes_floats
from runtime.cuda.binding import Cuda
from runtime.engine.builder import build_engine
from runtime.engine.config import REBUILD, EngineConfig
from runtime.engine.library import Library
from runtime.engine.plugins import PluginLibrary
from runtime.engine.profiles import with_default_sizes
from runtime.engine.progress import Monitor
from runtime.engine.sidecar import Provenance, Sidecar, sidecar_path
from runtime.files import file_identity, make_folder, sha256_of, write_whole
from runtime.graphs.load import OnnxFile, declared_tensors, graph_errors, metadata_of
from runtime.metadata import ModelMetadata
from runtime.precision.choice import chosen_plan
from runtime.precision.plan import PrecisionPlan, plan_sha256
from runtime.quantization import is_quantized

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


@dataclass(frozen=True, eq=False)
class ResolvedRequest:
    """An ``EngineRequest`` and all that it means; every file behind it is read once, and when it is needed.

    Attributes:
        request: see there.
        onnx: the file, read and hashed.
    """

    request: EngineRequest
    onnx: OnnxFile

    @property
    def model(self) -> Any:
        """The ``onnx.ModelProto``."""
        return self.onnx.model

    @cached_property
    def metadata(self) -> Optional[ModelMetadata]:
        """The model's facts, None for an ONNX that is not ours."""
        return metadata_of(self.model, self.request.onnx)

    @cached_property
    def config(self) -> EngineConfig:
        """What is built: the request's config or the default, with the sizes that the model needs."""
        config = self.request.config or _default_config(self.request.batch, self.model)
        return config if self.metadata is None else with_default_sizes(config, self.metadata)

    @cached_property
    def plan(self) -> Optional[PrecisionPlan]:
        """The precision plan of an FP16 engine."""
        request = self.request
        return chosen_plan(request.onnx, self.model, request.plan) if request.use_plan else None


@dataclass(frozen=True, eq=False)
class ReadyEngine:
    """An engine that this machine can run.

    Attributes:
        path: of the file.
        sidecar: what it was built from.
        data: the file's bytes.
    """

    path: Path
    sidecar: Sidecar
    data: bytes


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
    return ready_engine(resolve(request), machine, rebuild, monitor=monitor, echo=echo, notify=notify).sidecar


def resolve(request: EngineRequest) -> ResolvedRequest:
    """Read the request's ONNX.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it takes pixels.
    """
    if not request.onnx.is_file():
        raise FileNotFoundError(
            f"model {request.onnx}: expected an ONNX file, found nothing; make one with `{EXPORT_COMMAND}`"
        )
    resolved = ResolvedRequest(request, OnnxFile(request.onnx))
    check_takes_floats(
        request.onnx, resolved.metadata, "an engine of `runtime`, which prepares images on the GPU"
    )
    return resolved


def ready_engine(
    resolved: ResolvedRequest,
    machine: Machine,
    rebuild: str = "auto",
    *,
    monitor: Optional[Monitor] = None,
    echo: Optional[Callable[[str], None]] = None,
    notify: Callable[[str], None] = lambda text: None,
) -> ReadyEngine:
    """Return a good engine, built where it has to be; see ``ensure_engine``."""
    if rebuild not in REBUILD:
        raise ValueError(f"--rebuild: expected one of {', '.join(REBUILD)}, found {rebuild!r}")
    engine = resolved.request.engine
    seen, found, reasons = None, None, ["--rebuild always"]
    if rebuild != "always":
        # Without the lock, which a read-only folder cannot hold.
        seen = _identity(engine)
        found, reasons = _compared(resolved, machine)
        if found is not None:
            return found
        if rebuild == "never":
            raise _stale_error(engine, reasons)
    with _locked(engine, notify):
        # Another process may have built it meanwhile.
        if rebuild != "always" and _identity(engine) != seen:
            found, reasons = _compared(resolved, machine)
            if found is not None:
                return found
        notify(f"building {engine}: {'; '.join(reasons)}")
        return _build(resolved, machine, monitor, echo)


def check_engine(engine: Union[str, Path], machine: Machine) -> Sidecar:
    """Return the sidecar of an engine that this machine can run; see ``checked_engine``."""
    return checked_engine(engine, machine).sidecar


def checked_engine(engine: Union[str, Path], machine: Machine) -> ReadyEngine:
    """Return an engine that this machine can run.

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
    data = engine.read_bytes()
    reasons = _damage(engine, data, sidecar) + machine.provenance(onnx_sha256).differences(sidecar.provenance)
    if reasons:
        raise _stale_error(engine, reasons)
    return ReadyEngine(engine, sidecar, data)


def stale_reasons(request: EngineRequest, machine: Machine) -> list[str]:
    """Return in words why the engine on disk is not the one that is asked for; empty if it is."""
    return _compared(resolve(request), machine)[1]


def _compared(resolved: ResolvedRequest, machine: Machine) -> tuple[Optional[ReadyEngine], list[str]]:
    """Return the engine on disk if it is the one that is asked for, or else the reasons why it is not."""
    engine = resolved.request.engine
    if not engine.is_file():
        return None, ["there is none yet"]
    try:
        sidecar = Sidecar.load(engine)
    except (OSError, ValueError) as error:
        return None, [str(error)]
    data = engine.read_bytes()
    reasons = _damage(engine, data, sidecar)
    reasons += machine.provenance(resolved.onnx.sha256).differences(sidecar.provenance)
    reasons += _unasked(resolved, sidecar, may_read=not reasons)
    return (None, reasons) if reasons else (ReadyEngine(engine, sidecar, data), [])


def _unasked(resolved: ResolvedRequest, sidecar: Sidecar, *, may_read: bool) -> list[str]:
    """Return what of the configuration and the plan is not as asked for; the plan is read last, if at all."""
    request = resolved.request
    if request.config is not None:
        wanted = request.config
        if sidecar.metadata is not None:
            wanted = with_default_sizes(wanted, sidecar.metadata)
        reasons = _config_differences(wanted, sidecar.config)
        reads_plan = wanted.follows_plan and may_read and not reasons
        if reads_plan and plan_sha256(resolved.plan) != sidecar.plan_sha256:
            return ["precision plan: expected the one asked for, found another"]
        return reasons
    low, _, high = sidecar.config.batch
    if request.batch is not None and not low <= request.batch <= high:
        return [f"batch: expected a profile with {request.batch}, found {low} to {high}"]
    return []


def _build(
    resolved: ResolvedRequest,
    machine: Machine,
    monitor: Optional[Monitor],
    echo: Optional[Callable[[str], None]],
) -> ReadyEngine:
    request, config = resolved.request, resolved.config
    plan = resolved.plan if config.follows_plan else None
    cache = request.timing_cache
    timing_cache = cache.read_bytes() if cache and cache.is_file() else b""
    with graph_errors(request.onnx, resolved.model):
        built = build_engine(
            resolved.model,
            config,
            plan=plan,
            plugins=machine.plugins,
            timing_cache=timing_cache,
            monitor=monitor,
            echo=echo,
            library=machine.library,
        )
    sidecar = Sidecar(
        engine_sha256=sha256(built.data).hexdigest(),
        onnx=_relative(request.onnx, request.engine.parent),
        provenance=machine.provenance(resolved.onnx.sha256),
        config=config,
        plan_sha256=plan_sha256(plan),
        metadata=resolved.metadata,
        build={
            "seconds": round(built.seconds, 2),
            "bytes": len(built.data),
            "network_layers": built.num_layers,
            "layers_kept_fp32": built.num_float32,
            "warnings": list(built.warnings),
        },
        tensors=declared_tensors(resolved.model),
    )
    # The sidecar last: until it is there, the engine does not match the old one's SHA-256 and counts as stale.
    write_whole(request.engine, built.data)
    sidecar.save(request.engine)
    if cache and built.timing_cache:
        write_whole(cache, built.timing_cache)
    return ReadyEngine(request.engine, sidecar, built.data)


def _identity(engine: Path) -> list[Optional[tuple[int, ...]]]:
    """Return what changes when the engine or its sidecar is written or replaced."""
    return [file_identity(path) for path in (engine, sidecar_path(engine))]


def default_precision(model: Any) -> str:
    """Return the precision of an engine that is not asked for in another: INT8 where the file has it."""
    return "int8" if is_quantized(model) else EngineConfig.precision


def _default_config(batch: Optional[int], model: Any) -> EngineConfig:
    """Return what a model gets that is not asked for in another way."""
    precision = default_precision(model)
    if batch is None:
        return EngineConfig(precision=precision)
    return EngineConfig(batch=(1, batch, max(batch, EngineConfig.batch[2])), precision=precision)


def _damage(engine: Path, data: bytes, sidecar: Sidecar) -> list[str]:
    found = sha256(data).hexdigest()
    if found == sidecar.engine_sha256:
        return []
    return [
        f"engine file: expected {sidecar.build.get('bytes', '?')} bytes of SHA-256 {sidecar.engine_sha256[:12]}, found "
        f"{len(data)} bytes of {found[:12]}: truncated, or not the file that {sidecar_path(engine).name} describes"
    ]


def _config_differences(wanted: EngineConfig, found: EngineConfig) -> list[str]:
    left, right = wanted.to_dict(), found.to_dict()
    if left["batch"] != right["batch"]:
        right["profiles"] = left["profiles"]  # they differ then
    return [
        f"{name}: expected {left[name]}, found {right[name]}" for name in left if left[name] != right[name]
    ]


def _stale_error(engine: Path, reasons: list[str]) -> Exception:
    kind = FileNotFoundError if not engine.is_file() else ValueError
    return kind(
        f"engine {engine}: {'; '.join(reasons)}; build it again with `python -m runtime.build`, or use --rebuild auto"
    )


def _relative(path: Path, folder: Path) -> str:
    path, folder = path.resolve(), folder.resolve()
    return path.name if path.parent == folder else str(path)


def _lock_file(path: Path) -> IO[str]:
    try:
        return path.open("w")
    except OSError as error:
        reason = f"cannot write, name another folder: {error.strerror}"
        raise OSError(error.errno, reason, str(path)) from error


@contextmanager
def _locked(engine: Path, notify: Callable[[str], None]) -> Iterator[None]:
    """Hold the engine's lock file; another process that has it is waited for."""
    make_folder(engine.parent)
    with _lock_file(Path(f"{engine}.lock")) as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            notify(f"waiting for another process that builds {engine}")
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield
