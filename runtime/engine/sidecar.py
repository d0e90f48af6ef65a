"""``model.engine.json``: what an engine was built from, and whether that is still so."""

import json
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Optional, Union

from runtime.documents import parsed
from runtime.engine.config import EngineConfig
from runtime.files import write_whole
from runtime.messages import shown
from runtime.metadata import ModelMetadata
from runtime.reading import SMALL, bounded_bytes

FORMAT = 1


def sidecar_path(engine: Union[str, Path]) -> Path:
    """Return the sidecar's path: ``model.engine`` -> ``model.engine.json``."""
    return Path(f"{engine}.json")


@dataclass(frozen=True)
class Provenance:
    """What an engine depends on besides its configuration. Two engines of equal provenance are interchangeable.

    Attributes:
        onnx_sha256: of the ONNX file.
        plugins_sha256: of the plugin library, None if it was built without one.
        tensorrt: the release, ``TensorRT 8.5.3.1``.
        gpu: the device's name.
        compute_capability: ``9.0``.
    """

    onnx_sha256: str
    plugins_sha256: Optional[str]
    tensorrt: str
    gpu: str
    compute_capability: str

    def differences(self, found: "Provenance") -> list[str]:
        """Return in words what of ``found`` is not as here."""
        return [
            f"{_WORDS[field.name]}: expected {getattr(self, field.name)}, found {getattr(found, field.name)}"
            for field in fields(self)
            if getattr(self, field.name) != getattr(found, field.name)
        ]


_WORDS = {
    "onnx_sha256": "ONNX (SHA-256)",
    "plugins_sha256": "plugin library (SHA-256)",
    "tensorrt": "TensorRT",
    "gpu": "GPU",
    "compute_capability": "compute capability",
}


@dataclass(frozen=True)
class Sidecar:
    """All that ``model.engine.json`` says.

    Attributes:
        engine_sha256: of the engine file, so that a truncated or foreign file shows.
        onnx: name of the ONNX file, relative to the engine's folder.
        provenance: see there.
        config: what was asked for.
        plan_sha256: of the precision plan's JSON, None without a plan.
        metadata: the model's facts, None for an ONNX that is not ours.
        build: figures of the build: seconds, size, layers.
        tensors: of the ONNX, ``inputs`` and ``outputs``: dtypes by name, in its order, which an engine does not keep;
            None in sidecars of earlier versions.
    """

    engine_sha256: str
    onnx: str
    provenance: Provenance
    config: EngineConfig
    plan_sha256: Optional[str]
    metadata: Optional[ModelMetadata]
    build: dict
    tensors: Optional[dict[str, dict[str, str]]] = None

    def save(self, engine: Union[str, Path]) -> None:
        """Write the sidecar beside the engine, whole or not at all."""
        data = {
            "format": FORMAT,
            **{f.name: getattr(self, f.name) for f in fields(self)},
            "provenance": asdict(self.provenance),
            "config": self.config.to_dict(),
            "metadata": None if self.metadata is None else json.loads(self.metadata.to_json()),
        }
        write_whole(sidecar_path(engine), (json.dumps(data, indent=2) + "\n").encode())

    @classmethod
    def load(cls, engine: Union[str, Path]) -> "Sidecar":
        """Read the sidecar of an engine.

        Raises:
            FileNotFoundError: there is none.
            ValueError: it is not one, or of another format.
        """
        path = sidecar_path(engine)
        if not path.is_file():
            raise FileNotFoundError(
                f"engine {engine}: expected {path.name} beside it, found nothing; it holds what the engine was built "
                "from: build again with `python -m runtime.build`"
            )
        try:
            return cls._from_dict(parsed(bounded_bytes(path, SMALL)))
        except ValueError as error:
            raise ValueError(
                f"{path}: expected a sidecar of format {FORMAT}, found something else ({error}); build the engine "
                "again with `python -m runtime.build`"
            ) from error

    @classmethod
    def _from_dict(cls, data: Any) -> "Sidecar":
        number = data.get("format") if isinstance(data, dict) else None
        if number != FORMAT or isinstance(number, bool):
            raise ValueError(f"format {shown(number)}")
        metadata = _field(data, "metadata", dict, optional=True)
        provenance = _field(data, "provenance", dict)
        return cls(
            engine_sha256=_field(data, "engine_sha256", str),
            onnx=_field(data, "onnx", str),
            provenance=Provenance(
                **{
                    f.name: _field(provenance, f.name, str, optional=f.name == "plugins_sha256")
                    for f in fields(Provenance)
                }
            ),
            config=EngineConfig.from_dict(_field(data, "config", dict)),
            plan_sha256=_field(data, "plan_sha256", str, optional=True),
            metadata=None if metadata is None else ModelMetadata.from_json(json.dumps(metadata)),
            build=_checked_build(_field(data, "build", dict)),
            tensors=_checked_tensors(_field(data, "tensors", dict, optional=True)),
        )


def _checked_tensors(value: Optional[dict[str, Any]]) -> Optional[dict[str, dict[str, str]]]:
    if value is None:
        return None
    return {kind: {name: _field(tensors, name, str) for name in tensors} for kind, tensors in _kinds(value)}


def _kinds(value: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    return [(kind, _field(value, kind, dict)) for kind in ("inputs", "outputs")]


_NUMBER = (int, float)
# Figures of a build that are read again; the optional ones come when the engine was inspected.
_BUILD: dict[str, tuple[tuple[type, ...], bool]] = {
    "seconds": (_NUMBER, False),
    "bytes": ((int,), False),
    "layers_kept_fp32": ((int,), True),
    "layers": ((int,), True),
    "layers_by_precision": ((dict,), True),
    "dense_flops_share": ((dict,), True),
    "slower_than_asked": ((dict,), True),
    "node_precisions": ((dict,), True),
}


def _checked_build(build: dict[str, Any]) -> dict[str, Any]:
    for name, (kinds, optional) in _BUILD.items():
        value = _field(build, name, *kinds, optional=optional)
        is_text = name == "node_precisions"
        if isinstance(value, dict) and not all(map(_is_text if is_text else _is_number, value.values())):
            raise ValueError(f"{name}: expected {'words' if is_text else 'numbers'}, found {shown(value)}")
    return build


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_number(value: Any) -> bool:
    return type(value) in _NUMBER and value == value


def _field(data: dict[str, Any], name: str, *kinds: type, optional: bool = False) -> Any:
    """Return a value of one of the types; of an optional field, None where there is none."""
    value = data.get(name)
    if type(value) not in kinds and not (optional and value is None):
        words = " or ".join(kind.__name__ for kind in kinds)
        raise ValueError(f"{name}: expected {words}, found {shown(value) if name in data else 'none'}")
    return value
