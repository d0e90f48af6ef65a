"""Precision plans and engines' sidecars."""

import json
from pathlib import Path

import numpy as np
import pytest

from runtime.build import main as build
from runtime.engine.sidecar import Sidecar, sidecar_path
from runtime.precision.__main__ import main as precision_main
from runtime.precision.plan import PrecisionPlan, check_plan
from tests.fuzz import materials
from tests.fuzz.mutations import damaged_bytes, damaged_json, pick
from tests.fuzz.trial import Trial
from tests.runtime import fakes
from tests.runtime.engine import fakes as engine_fakes
from tests.runtime.engine.fake_cuda import Device

PLAN = {
    "format": 1,
    "groups": [
        {"name": "sizes", "reason": "coordinates need 24 bits", "nodes": ["whwh", "whwh3"]},
        {"name": "boxes", "reason": "so do these", "nodes": ["boxes", "rows"]},
    ],
}
_built: dict[str, bytes] = {}


def plans(folder: Path, random: np.random.Generator) -> Trial:
    """Damage a precision plan, and read it, or convert a model by it."""
    said, data = damaged_json(PLAN, random)
    path, model, out = folder / "damaged.plan.json", folder / "good.onnx", folder / "out"
    path.write_bytes(data)
    if random.random() < 0.6:
        return Trial(
            said, lambda: check_plan(PrecisionPlan.load(path), fakes.model()), (str(path), "precision plan")
        )
    model.write_bytes(materials.fake_model())
    arguments = ["convert", str(model), "--plan", str(path), "-o", str(out / "half.onnx")]
    return Trial(said, lambda: precision_main(arguments), (str(path),), True, outputs=out)


def sidecars(folder: Path, random: np.random.Generator) -> Trial:
    """Damage an engine's sidecar, or the engine, and read them or build again, on the fakes."""
    model, engine = folder / "m.onnx", folder / "m.engine"
    model.write_bytes(materials.fake_model())
    for name, data in _engine(folder).items():
        (folder / name).write_bytes(data)
    sidecar = sidecar_path(engine)
    if random.random() < 0.2:
        said, data = damaged_bytes(engine.read_bytes(), random)
        engine.write_bytes(data)
        said = f"engine: {said}"
    else:
        said, data = damaged_json(json.loads(sidecar.read_bytes()), random)
        sidecar.write_bytes(data)
    if random.random() < 0.5:
        return Trial(said, lambda: Sidecar.load(engine), (str(sidecar),))
    rebuild = pick(random, ("auto", "never"))
    changed = (engine, sidecar, Path(f"{engine}.lock"))

    def check() -> str:
        Sidecar.load(engine)
        return ""

    return Trial(
        f"{rebuild}: {said}",
        lambda: _build(str(model), "--rebuild", rebuild),
        (str(engine), str(sidecar)),
        True,
        check,
        may_change=changed,
        outputs=folder,
    )


def _build(*arguments: str) -> int:
    with pytest.MonkeyPatch.context() as patch:
        engine_fakes.install(patch, engine_fakes.V8_5, Device("NVIDIA H200", (9, 0)))
        return build(list(arguments))


def _engine(folder: Path) -> dict[str, bytes]:
    """Return a good engine and its sidecar, built once in a process."""
    if not _built:
        status = _build(str(folder / "m.onnx"))
        if status != 0:
            raise RuntimeError(f"the fake engine was not built: status {status}")
        for name in ("m.engine", "m.engine.json"):
            _built[name] = (folder / name).read_bytes()
    return _built
