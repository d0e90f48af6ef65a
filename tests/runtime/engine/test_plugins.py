"""The plugin library: where it is looked for, what it registers, and what is said when it is not to be had."""

import ctypes
import hashlib
import shutil
import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest

from runtime.engine import plugins as engine_plugins
from runtime.engine.compat import TensorRT
from runtime.engine.plugins import FILE_NAME, VARIABLE, find_plugins, load_plugins
from tests.runtime.engine import fakes
from tests.runtime.engine.conftest import PLUGIN_OPS
from tests.runtime.processes import SECONDS


@pytest.fixture(autouse=True)
def nothing_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No variable, empty default folders, nothing loaded."""
    monkeypatch.delenv(VARIABLE, raising=False)
    monkeypatch.setattr(engine_plugins, "FOLDERS", (tmp_path / "build", tmp_path / "plugins"))
    monkeypatch.setattr(engine_plugins, "_loaded", {})


def _file(path: Path, content: bytes = b"a library") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def test_the_argument_comes_first_then_the_variable_then_the_folders(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert find_plugins() is None
    installed = _file(tmp_path / "plugins" / FILE_NAME)
    assert find_plugins() == installed
    built = _file(tmp_path / "build" / FILE_NAME)
    assert find_plugins() == built
    named = _file(tmp_path / "elsewhere" / "mine.so")
    monkeypatch.setenv(VARIABLE, str(named))
    assert find_plugins() == named
    argument = _file(tmp_path / "other.so")
    assert find_plugins(argument) == argument
    assert find_plugins(str(argument)) == argument
    monkeypatch.setenv(VARIABLE, "")
    assert find_plugins() == built


def test_the_default_folders_are_those_of_make_and_pip() -> None:
    root = Path(__file__).parents[3]
    assert root == engine_plugins.ROOT
    assert (root / "plugins").is_dir()


def test_a_relative_path_is_made_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """dlopen looks for a bare name in the system's folders only."""
    _file(tmp_path / "mine.so")
    monkeypatch.chdir(tmp_path)
    assert find_plugins("mine.so") == tmp_path / "mine.so"


def test_a_named_library_that_is_not_there_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _file(tmp_path / "build" / FILE_NAME)  # which is not taken instead
    tensorrt = fakes.library().tensorrt
    message = "--plugins: expected the plugin library, found no file .*none.so; build it with `make plugins`"
    with pytest.raises(FileNotFoundError, match=message):
        load_plugins(tmp_path / "none.so", tensorrt)
    monkeypatch.setenv(VARIABLE, str(tmp_path / "gone.so"))
    with pytest.raises(FileNotFoundError, match=rf"\${VARIABLE}: .*gone.so; build it"):
        load_plugins(None, tensorrt)


def test_without_a_library_there_are_no_plugins() -> None:
    assert load_plugins(None, fakes.library().tensorrt) is None


def test_a_library_is_asked_for_what_it_registered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trt = fakes.tensorrt(plugins=["NMS_TRT"])
    path = _file(tmp_path / "mine.so", b"content")
    loaded = []

    def load(name: str, mode: int) -> SimpleNamespace:
        loaded.append((name, mode))
        fakes.register(trt, "GroupedNMS")
        fakes.register(trt, "PasteMasks", attributes=("threshold", "output_type"))
        return SimpleNamespace(maskrcnn_plugins_register=lambda: 2)

    monkeypatch.setattr(ctypes, "CDLL", load)
    found = load_plugins(path, TensorRT(trt))
    assert found.attributes == {"GroupedNMS": set(), "PasteMasks": {"threshold", "output_type"}}
    assert found.ops == {"GroupedNMS", "PasteMasks"}
    assert found.path == path
    assert found.sha256 == hashlib.sha256(b"content").hexdigest()
    # A second time, creators would be there twice, and none of them new.
    assert load_plugins(path, TensorRT(trt)) is found
    assert loaded == [(str(path), ctypes.RTLD_GLOBAL)]


def test_of_two_creators_of_a_name_what_both_take_counts() -> None:
    """Which of them the parser finds is TensorRT's to say."""
    trt = fakes.tensorrt()
    fakes.register(trt, "PasteMasks", attributes=("threshold", "output_type"))
    fakes.register(trt, "PasteMasks", attributes=("threshold",))
    fakes.register(trt, "NMS_TRT", attributes=("threshold",))
    assert TensorRT(trt).plugin_attributes({"PasteMasks", "GroupedNMS"}) == {"PasteMasks": {"threshold"}}


@pytest.mark.parametrize(
    ("entry_point", "ops"),
    [(True, {"GroupedNMS", "PaddedSpaceToDepth"}), (False, set())],
    ids=["ours", "foreign"],
)
def test_a_library_that_somebody_else_has_loaded_is_known_by_its_operators(
    entry_point: bool, ops: set, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its creators are there before we look; those of other libraries are none of its."""
    trt = fakes.tensorrt(plugins=["NMS_TRT", "GroupedNMS", "PaddedSpaceToDepth"])
    loaded = SimpleNamespace(maskrcnn_plugins_register=lambda: 0) if entry_point else SimpleNamespace()
    monkeypatch.setattr(ctypes, "CDLL", lambda name, mode: loaded)
    assert load_plugins(_file(tmp_path / "mine.so"), TensorRT(trt)).ops == ops


def test_our_operators_are_those_that_the_exporter_and_older_files_use() -> None:
    assert set(PLUGIN_OPS) < engine_plugins.PLUGINS
    folder = engine_plugins.ROOT / "plugins"
    sources = "".join(p.read_text() for p in folder.rglob("*") if p.suffix in (".h", ".cpp", ".cu"))
    assert [op for op in engine_plugins.OPS if f'"{op}"' not in sources] == []


def test_rtx_takes_no_plugins(tmp_path: Path) -> None:
    module = fakes.tensorrt("1.7.1.116")
    module.__name__ = "tensorrt_rtx"
    assert load_plugins(_file(tmp_path / "mine.so"), TensorRT(module)) is None


def test_what_does_not_load_is_refused(tmp_path: Path) -> None:
    path = _file(tmp_path / "text.so", b"version https://git-lfs.github.com/spec/v1\n")
    message = "plugins .*text.so: expected a library that loads, found: .*; build it on this machine with `make plug"
    with pytest.raises(RuntimeError, match=message):
        load_plugins(path, fakes.library().tensorrt)


def _compiled(path: Path, source: str) -> Path:
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("no C compiler")
    path.with_suffix(".c").write_text(source)
    subprocess.run(
        [compiler, "-shared", "-fPIC", "-o", str(path), str(path.with_suffix(".c"))],
        check=True,
        timeout=SECONDS,
    )
    return path


def test_a_library_for_another_major_version_is_refused(tmp_path: Path) -> None:
    path = _compiled(tmp_path / "old.so", "int maskrcnn_plugins_register(void) { return -1; }")
    message = (
        "plugins .*old.so: expected a library for TensorRT 10.0.1.6, found one that was compiled for another major "
        "version; build it with `make plugins TENSORRT_ROOT=...` of the TensorRT that is installed"
    )
    for _ in range(2):  # it is not taken for loaded afterwards
        with pytest.raises(RuntimeError, match=message):
            load_plugins(path, fakes.library(fakes.V10_0).tensorrt)


def test_any_other_plugin_library_loads(tmp_path: Path) -> None:
    """One that registers its creators when it is loaded, without our entry point."""
    path = _compiled(tmp_path / "foreign.so", "int answer(void) { return 42; }")
    assert load_plugins(path, fakes.library().tensorrt).ops == frozenset()
