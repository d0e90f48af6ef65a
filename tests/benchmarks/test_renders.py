"""``benchmarks.renders`` with the embedded model."""

import json
from pathlib import Path

from benchmarks import renders


def test_every_model_has_its_average_precision(embedded_path: Path, tmp_path: Path) -> None:
    out = tmp_path / "renders.json"
    models = [f"{name}={embedded_path}" for name in ("fp32", "again")]
    assert renders.main([*models, "--backend", "onnxruntime", "--num", "3", "--output", str(out)]) == 0
    found = json.loads(out.read_text())
    assert found["images"] == 3
    assert found["models"]["fp32"] == found["models"]["again"]
    assert found["models"]["fp32"]["detections"] > 0
    # Trained on renders of much smaller images: it finds some.
    assert found["models"]["fp32"]["average_precision"]["box"] > 0.01
