"""Engine files: stale ones are refused, or built again. With a network that builds in a moment."""

import re
import shutil
from pathlib import Path

import pytest

from runtime.engine.files import Machine, ensure_engine
from tests.gpu.engines import harness

pytestmark = [pytest.mark.gpu, pytest.mark.tensorrt]


def test_a_small_network_equals_onnxruntime(small: Path, machine: Machine) -> None:
    harness.check_small(small, machine)


@pytest.mark.parametrize("name", harness.STALE)
def test_a_stale_engine_is_refused_or_built_again(
    name: str, small: Path, machine: Machine, timing_cache: Path, tmp_path: Path
) -> None:
    place = Path(shutil.copytree(small, tmp_path / "copy"))
    spoil, words = harness.STALE[name]
    spoil(place, "small")
    before = (place / "small.engine").read_bytes()
    request = harness.small_request(place, timing_cache)
    with pytest.raises(ValueError, match=words):
        ensure_engine(request, machine, "never")
    assert (place / "small.engine").read_bytes() == before
    notes: list = []
    ensure_engine(request, machine, "auto", notify=notes.append)
    assert len(notes) == 1
    assert re.match(f"building .*{words}", notes[0])
    ensure_engine(request, machine, "never")
    harness.check_small(place, machine)


def test_an_engine_of_another_plugin_library_is_refused_or_built_again(
    small: Path, machine: Machine, timing_cache: Path, tmp_path: Path
) -> None:
    """In new processes: a library registers its operators once in each."""
    place = Path(shutil.copytree(small, tmp_path / "copy"))
    other = tmp_path / "libother.so"
    other.write_bytes(machine.plugins.path.read_bytes() + b"\0")
    arguments = harness.build_arguments(
        place / "small.onnx", place / "small.engine", timing_cache, "--precision", "fp32"
    )
    command = ("-m", "runtime.build", *arguments, "--plugins", other, "--rebuild")
    words = r"plugin library \(SHA-256\): expected \w+, found \w+"
    refused = harness.run_command(*command, "never")
    assert refused.returncode == 2
    assert re.search(f"error: engine .*{words}", refused.stderr)
    rebuilt = harness.run_command(*command, "auto")
    assert rebuilt.returncode == 0, rebuilt.stderr[-1000:]
    assert re.search(f"building .*{words}", rebuilt.stderr)
    with pytest.raises(ValueError, match=words):
        ensure_engine(harness.small_request(place, timing_cache), machine, "never")
    harness.check_small(place, machine)
