"""The source distribution and the wheel: built, installed into an environment of their own, run away from the sources.

One module, whose fixtures build once. The environment finds the dependencies in the one that runs the tests; the
package itself comes from the wheel.
"""

import importlib.util
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest

from runtime import embedded

ROOT = Path(__file__).parents[1]
PACKAGES = ("export", "patches", "plugins", "runtime")
SECONDS = 300
# In the repository, and of no use to who builds, tests or reads an unpacked source distribution.
REPOSITORY_ONLY = (".ci/", ".git", ".importlinter")
# The fork of OpenMMLab's packages with their import names, and what its mmdet imports that OpenMMLab's does not.
FORK = ("onedl-mmengine==0.10.12", "onedl-mmcv==2.3.6", "onedl-mmdetection==3.5.1")
FORK += ("imaug==0.4.3", "scikit-image", "imageio", "lazy_loader", "tifffile")
COMMANDS = (
    *(
        "batch",
        "build",
        "compare",
        "convert",
        "evaluate",
        "export",
        "graft",
        "infer",
        "precision",
        "quantize",
    ),
    *("record", "reference", "run", "serve"),
)


def run(*command: object, cwd: Path) -> subprocess.CompletedProcess:
    """Run a command that must succeed."""
    done = attempt(*command, cwd=cwd)
    assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
    return done


def attempt(*command: object, cwd: Path) -> subprocess.CompletedProcess:
    own = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "TENSORRT_ROOT")}
    return subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        capture_output=True,
        encoding="utf-8",
        env={**own, "PYTHONIOENCODING": "utf-8"},
        timeout=SECONDS,
    )


@pytest.fixture(scope="module")
def sdist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("sdist")
    info = place / "info"  # not in the sources, where another build's list of files may lie
    info.mkdir()
    run(sys.executable, "setup.py", "-q", "egg_info", "-e", info, "sdist", "-d", place, cwd=ROOT)
    return next(place.glob("*.tar.gz"))


@pytest.fixture(scope="module")
def sources(sdist: Path) -> Path:
    """The source distribution, unpacked, with what an earlier build of other sources has left in it."""
    with tarfile.open(sdist) as archive:
        archive.extractall(sdist.parent)
    root = sdist.parent / sdist.name[: -len(".tar.gz")]
    library = root / "build" / "python" / f"lib.{sysconfig.get_platform()}-{sys.implementation.cache_tag}"
    for stale in ("runtime/gone.py", "examples/__init__.py"):
        (library / stale).parent.mkdir(parents=True, exist_ok=True)
        (library / stale).touch()
    reference = importlib.util.find_spec("plugins._reference")
    if reference is not None:  # the compiler takes minutes, and has run
        (library / "plugins").mkdir()
        shutil.copyfile(reference.origin, library / "plugins" / Path(reference.origin).name)
    return root


@pytest.fixture(scope="module")
def wheel(sources: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("wheel")
    options = ("--no-deps", "--no-build-isolation", "--no-index", "-q", "-w", place)
    run(sys.executable, "-m", "pip", "wheel", *options, sources, cwd=place)
    return next(place.glob("*.whl"))


@pytest.fixture(scope="module")
def python(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The interpreter of an environment with the wheel."""
    place = tmp_path_factory.mktemp("environment")
    venv.create(place, with_pip=False)
    interpreter = place / "bin" / "python"
    own = Path(
        run(interpreter, "-c", "import site; print(site.getsitepackages()[0])", cwd=place).stdout.strip()
    )
    # Only folders on the path: editable installations are found by .pth files, which are not read there.
    (own / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    options = ("--no-deps", "--no-index", "-q", wheel)
    run(sys.executable, "-m", "pip", "--python", interpreter, "install", *options, cwd=place)
    return interpreter


def source_files() -> set[str]:
    """Return what git tracks, or would."""
    if not (ROOT / ".git").exists():
        pytest.skip("no git repository")
    listed = run(
        "git", "ls-files", "--cached", "--others", "--exclude-standard", cwd=ROOT
    ).stdout.splitlines()
    return {name for name in listed if not name.startswith(REPOSITORY_ONLY) and (ROOT / name).is_file()}


def test_the_source_distribution_is_complete(sdist: Path) -> None:
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert sorted(source_files() - names) == []


def test_the_wheel_has_every_module_the_embedded_model_and_nothing_else(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
    modules = {
        name
        for name in source_files()
        if name.split("/")[0] in PACKAGES and name.endswith((".py", ".typed", ".json", ".html"))
    } | {"export/convert/deepstream_parser.cpp"}
    data = [*embedded.VERIFICATION_IMAGES, *embedded.IMAGES_DIR.iterdir()]
    data += [embedded.CONFIG_PATH, embedded.CHECKPOINT_PATH]
    model = {f"runtime/_embedded/{path.relative_to(embedded.ROOT)}" for path in data}
    compiled = {name for name in names if name.startswith("plugins/") and name.endswith(".so")}
    assert names - compiled == modules | model


def test_the_package_is_the_wheels(python: Path, tmp_path: Path) -> None:
    names = (*PACKAGES, "examples", "tests")
    program = f"from importlib.util import find_spec; print(*(getattr(find_spec(n), 'origin', '') for n in {names}))"
    found = run(python, "-c", program, cwd=tmp_path).stdout.rstrip("\n").split(" ")
    assert all(Path(file).is_relative_to(python.parents[1]) for file in found[: len(PACKAGES)]), found
    assert found[len(PACKAGES) :] == ["", ""]


def test_the_installed_commands_export_and_detect(python: Path, tmp_path: Path) -> None:
    """Without arguments, as the README has them: the embedded model and its images are in the wheel."""
    if importlib.util.find_spec("plugins._reference") is None:
        pytest.skip("the CPU reference is not built")
    exported = run(python, "-m", "export.maskrcnn", cwd=tmp_path)
    assert (tmp_path / "out" / "maskrcnn.onnx").is_file(), exported.stdout
    run(python, "-m", "runtime.infer", "--batch", "2", cwd=tmp_path)
    overlays = {path.stem for path in (tmp_path / "out").rglob("*.*g")}
    assert {path.stem for path in embedded.IMAGES_DIR.iterdir()} <= {stem.split(".")[0] for stem in overlays}
    single = embedded.IMAGES_DIR / "single.jpg"
    run(python.with_name("maskrcnn-infer"), single, "--out", tmp_path / "one", cwd=tmp_path)
    assert any((tmp_path / "one").iterdir())


def test_every_command_is_installed(python: Path, tmp_path: Path) -> None:
    """Each is a function: without arguments they would start to work."""
    program = """
from importlib.metadata import distribution
for command in distribution("maskrcnn-deploy").entry_points:
    print(command.name, callable(command.load()))
"""
    found = run(python, "-c", program, cwd=tmp_path).stdout.splitlines()
    assert sorted(found) == [f"maskrcnn-{name} True" for name in COMMANDS]
    assert all(python.with_name(f"maskrcnn-{name}").is_file() for name in COMMANDS)


@pytest.mark.parametrize("name", ["runtime.py", "patches.py", "plugins/__init__.py"])
def test_a_foreign_module_of_the_same_name_is_named(name: str, python: Path, tmp_path: Path) -> None:
    """It lies in the folder where the command is run, which ``python -m`` looks into first."""
    foreign = tmp_path / name
    foreign.parent.mkdir(exist_ok=True)
    foreign.write_text("")
    done = attempt(python, "-m", "export.maskrcnn", "--help", cwd=tmp_path)
    assert done.returncode != 0
    assert f"found {foreign.resolve()}, which Python finds first; rename it" in done.stderr.replace("\n", " ")


def test_an_installed_command_does_not_look_into_the_folder_where_it_is_run(
    python: Path, tmp_path: Path
) -> None:
    (tmp_path / "runtime.py").write_text("")
    done = run(python.with_name("maskrcnn-infer"), "--help", cwd=tmp_path)
    assert done.stdout.startswith("usage: ")


def test_the_exporter_does_not_ask_for_mmdet_by_name(wheel: Path) -> None:
    """Only an extra does: a fork with the same import names is not installed over."""
    with zipfile.ZipFile(wheel) as archive:
        metadata = next(
            archive.read(n).decode() for n in archive.namelist() if n.endswith(".dist-info/METADATA")
        )
    required = re.findall(r'^Requires-Dist: ([\w-]+).*?(?:extra == "([\w-]+)")?$', metadata, re.MULTILINE)
    extras = {
        name: {extra for own, extra in required if own == name} for name in ("mmdet", "mmengine", "mmcv-lite")
    }
    assert extras == dict.fromkeys(extras, {"mmdet", "mmcv-lite"})


@pytest.mark.slow
def test_the_fork_of_mmdet_exports_the_same(wheel: Path, python: Path, tmp_path: Path) -> None:
    """In its own environment, before OpenMMLab's on the path; verified by the command itself, against the fork."""
    options = ("--no-deps", "-q", "--prefix", tmp_path / "fork")
    done = attempt(sys.executable, "-m", "pip", "install", *options, *FORK, cwd=tmp_path)
    if done.returncode != 0:
        pytest.skip(f"the fork does not install here: {done.stderr[-300:]}")
    folder = sysconfig.get_path("purelib", vars={"base": str(tmp_path / "fork")})
    program = f"import sys, runpy; sys.path.insert(0, {folder!r}); "
    program += "import mmcv, mmdet; print(mmcv.__file__, mmdet.__file__); "
    program += "sys.argv = ['export']; runpy.run_module('export.maskrcnn', run_name='__main__')"
    exported = run(python, "-c", program, cwd=tmp_path)
    assert all(file.startswith(folder) for file in exported.stdout.split("\n")[0].split()[-2:]), (
        exported.stdout
    )
    assert (tmp_path / "out" / "maskrcnn.onnx").is_file()
