"""Engines of several profiles: one image alone, and more."""

from pathlib import Path

import numpy as np
import onnx
import pytest

from runtime.engine.builder import build_engine
from runtime.engine.config import EngineConfig
from runtime.engine.files import Machine
from runtime.engine.session import EngineSession
from tests.gpu.engines import harness

pytestmark = [pytest.mark.gpu, pytest.mark.tensorrt]

PROFILES = ((1, 1, 1), (2, 4, 8))
BATCHES = (1, 8, 1, 2, 5, 1, 1, 8, 8, 2, 1)


@pytest.fixture(scope="module")
def engine(machine: Machine) -> bytes:
    config = EngineConfig(profiles=PROFILES, precision="fp32", tactic_sources=harness.tactic_sources())
    return build_engine(harness.small_model(), config, library=machine.library).data


@pytest.mark.parametrize("cuda_graphs", [False, True])
def test_every_batch_equals_onnxruntime(cuda_graphs: bool, engine: bytes, machine: Machine) -> None:
    model: onnx.ModelProto = harness.small_model()
    rng = np.random.default_rng(0)
    with EngineSession(
        engine, library=machine.library, cuda=machine.cuda, cuda_graphs=cuda_graphs
    ) as session:
        assert session.inputs["data"].profile == ((1, 3, 16, 16), (4, 3, 16, 16), (8, 3, 16, 16))
        for batch in BATCHES:
            feeds = {"data": rng.standard_normal((batch, 3, 16, 16)).astype(np.float32)}
            expected = harness.run_onnx(model, feeds)["out"]
            np.testing.assert_allclose(session.run(feeds)["out"], expected, atol=harness.CLOSE)
        assert session.cuda_graph_failure == ""
        with pytest.raises(ValueError, match="input data: expected a shape from"):
            session.run({"data": np.zeros((9, 3, 16, 16), np.float32)})


def test_the_default_engine_has_both(model: Path, fp16: Path, machine: Machine) -> None:
    """Built for 1 to 8: what one image finds alone, it finds among others up to FP16's rounding."""
    with harness.open_session(fp16, machine) as session:
        assert session.inputs["images"].profile[0][0] == 1
        assert len(session.layer_information()) > 0
        assert machine.library.tensorrt.num_profiles(session._engine) == 2
