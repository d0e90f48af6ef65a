"""``python -m runtime.build`` on the fake TensorRT and GPU."""

import builtins
import io
import json
import re
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper, parser

from runtime import build, build_engine
from runtime.engine import builds
from runtime.engine.config import EngineConfig
from runtime.engine.inspection import Layer
from runtime.engine.sidecar import Sidecar
from runtime.precision.plan import PrecisionGroup, PrecisionPlan
from runtime.transforms import Resize
from tests.runtime import fakes
from tests.runtime.engine import fakes as engine_fakes
from tests.runtime.engine.fake_cuda import Cudart, Device

DENSE = """<ir_version: 8, opset_import: ["": 17]>
net (float[batch, 3, 16, 16] x) => (float[batch, 8, 16, 16] y, float[batch, 4, 16, 16] z) {
    y = Conv<pads = [1, 1, 1, 1]>(x, w)
    z = Conv<pads = [1, 1, 1, 1]>(x, v)
}"""


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> Device:
    gpu = Device("NVIDIA H200", (9, 0))
    engine_fakes.install(monkeypatch, engine_fakes.V8_5, gpu)
    return gpu


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return fakes.save(tmp_path / "m.onnx")


def _dense(path: Path) -> Path:
    """Write a network of two convolutions, two thirds and one third of its arithmetic."""
    model = parser.parse_model(DENSE)
    for name, channels in (("w", 8), ("v", 4)):
        weights = np.zeros((channels, 3, 3, 3), np.float32)
        model.graph.initializer.append(numpy_helper.from_array(weights, name))
    model.graph.node[0].name, model.graph.node[1].name = "/large", "/small"
    onnx.save(model, str(path))
    return path


def _run(*arguments: object) -> int:
    return build.main([str(a) for a in arguments])


def _config(*arguments: object) -> EngineConfig:
    args = build._parser().parse_args(["m.onnx", *(str(a) for a in arguments)])
    return build._keywords(args)["config"]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ([], EngineConfig()),
        (["--batch", 1, 4, 16], EngineConfig(batch=(1, 4, 16))),
        (["--size", "800x1216"], EngineConfig(height=(800,) * 3, width=(1216,) * 3)),
        (
            ["--size", "320x320", "800X1216", "1344x1344"],
            EngineConfig(height=(320, 800, 1344), width=(320, 1216, 1344)),
        ),
        (
            ["--shape", "a=1x3x8,2x3x8,4x3x8", "--shape", "b=1,2,4"],
            EngineConfig(
                shapes=(("a", ((1, 3, 8), (2, 3, 8), (4, 3, 8))), ("b", ((1,), (2,), (4,)))),
            ),
        ),
        (["--precision", "tf32"], EngineConfig(precision="tf32")),
        (["--workspace", 4096], EngineConfig(workspace_mib=4096)),
        (["--tactic-sources", "cudnn,cublas"], EngineConfig(tactic_sources=("cublas", "cudnn"))),
        (["--tactic-sources", "none"], EngineConfig(tactic_sources=())),
    ],
)
def test_options_become_a_config(arguments: list, expected: EngineConfig) -> None:
    assert _config(*arguments) == expected


def test_other_options_become_the_request() -> None:
    keywords = build._keywords(build._parser().parse_args(["out/m.onnx"]))
    assert (keywords["model"], keywords["engine"]) == (Path("out/m.onnx"), None)
    assert [keywords[name] for name in ("plan", "use_plan", "timing_cache")] == [None, True, None]
    arguments = ["m.onnx", "-o", "x.trt", "--plan", "p.json", "--timing-cache", "t.cache"]
    keywords = build._keywords(build._parser().parse_args(arguments))
    assert [keywords[name] for name in ("engine", "plan", "timing_cache")] == [
        Path("x.trt"),
        Path("p.json"),
        Path("t.cache"),
    ]
    assert not build._keywords(build._parser().parse_args(["m.onnx", "--no-plan"]))["use_plan"]


def test_every_file_is_read_once(model: Path, device: Device, monkeypatch: pytest.MonkeyPatch) -> None:
    """And the ONNX hashed once: what is compared is what is built."""
    plan = PrecisionPlan(())
    plan.save(model.with_suffix(".plan.json"))
    num_reads: Counter[str] = Counter()
    original = io.open

    def counted(file: object, mode: str = "r", *arguments: object, **options: object) -> object:
        if "r" in mode:
            num_reads[Path(str(file)).name] += 1
        return original(file, mode, *arguments, **options)

    for module in (io, builtins):
        monkeypatch.setattr(module, "open", counted)
    assert _run(model) == 0
    built = {name: num_reads[name] for name in ("m.onnx", "m.plan.json", "m.engine")}
    assert built == {"m.onnx": 1, "m.plan.json": 1, "m.engine": 0}
    num_reads.clear()
    assert _run(model) == 0
    kept = {name: num_reads[name] for name in ("m.onnx", "m.plan.json", "m.engine", "m.engine.json")}
    assert kept == dict.fromkeys(kept, 1)
    num_reads.clear()
    assert _run(model, "--batch", 1, 1, 1) == 0  # stale
    assert (num_reads["m.onnx"], num_reads["m.plan.json"], num_reads["m.engine"]) == (1, 1, 1)


def test_as_a_function(model: Path, device: Device) -> None:
    lines = []
    built = build_engine(model, config=EngineConfig(batch=(1, 1, 1)), notify=lines.append)
    assert built.path == model.with_suffix(".engine")
    assert built.sidecar == Sidecar.load(built.path)
    assert lines[1].startswith(f"building {built.path}")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--batch", 4, 2, 1], "batch: expected three numbers of at least 1, MIN <= OPT <= MAX, found 4 2 1"),
        (["--size", "800"], "--size: expected numbers joined by x, such as 800x1216, found '800'"),
        (["--size", "axb"], "--size: expected numbers joined by x, such as 800x1216, found 'axb'"),
        (["--size", "1x2", "3x4"], "--size: expected HxW, or MIN OPT MAX of it, found 1x2 3x4"),
        (["--size", "8x8", "4x4", "9x9"], "height: expected three numbers .*, found 8 4 9"),
        (["--size", "0x8"], "height: expected three numbers of at least 1, .* found 0 0 0"),
        (["--shape", "x"], "--shape x: expected numbers joined by x, such as 800x1216, found ''"),
        (
            ["--shape", "x=1x3,2x3"],
            "--shape: expected NAME=MIN,OPT,MAX with shapes such as .*, found 'x=1x3,2x3'",
        ),
        (["--shape", "=1,2,3"], "--shape: expected NAME=MIN,OPT,MAX .*, found '=1,2,3'"),
        (["--shape", "x=1x3,axb,2x3"], "--shape x: expected numbers joined by x, .* found 'axb'"),
        (["--shape", "x=2,1,3"], r"--shape x: expected MIN <= OPT <= MAX in every dimension, found \(2,\)"),
        (["--tactic-sources", "cublas,nothing"], "--tactic-sources: expected some of .*, found nothing"),
        (
            ["--plugins", "{tmp}/none.so"],
            "--plugins: expected the plugin library, found no file .*none.so; build it",
        ),
        (["--plan", "{tmp}/none.json"], "precision plan .*none.json: expected a file, found nothing there"),
        (["--device-index", 3], "CUDA: expected device 3, found 1 device; see nvidia-smi"),
        (["--rebuild", "never"], "engine .*m.engine: there is none yet; build it again with"),
    ],
)
def test_what_cannot_be_built_exits_with_two(
    arguments: list,
    message: str,
    model: Path,
    device: Device,
    tmp_path: Path,
    capsys: pytest.CaptureFixture,
) -> None:
    assert _run(model, *(str(a).format(tmp=tmp_path) for a in arguments)) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert re.search(f"^error: {message}", printed.err, re.MULTILINE)
    assert not list(tmp_path.glob("*.engine*.json"))


@pytest.mark.parametrize(
    "arguments",
    [
        ["--batch", "0", "1", "2"],
        ["--batch", "1", "2"],
        ["--precision", "int4"],
        ["--workspace", "0"],
        ["--rebuild", "maybe"],
        ["--plan", "p.json", "--no-plan"],
    ],
)
def test_wrong_arguments_exit_with_two(arguments: list[str], capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit) as exit_info:
        build.main(["m.onnx", *arguments])
    assert exit_info.value.code == 2
    assert arguments[-1 if "--no-plan" in arguments else 0] in capsys.readouterr().err


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            None,
            "model .*m.onnx: expected an ONNX file, found nothing; make one with `python -m export.maskrcnn`",
        ),
        (b"no onnx", "model .*m.onnx: expected an ONNX file, found something else"),
    ],
)
def test_what_is_no_model_exits_with_two(
    content: object, message: str, tmp_path: Path, device: Device, capsys: pytest.CaptureFixture
) -> None:
    if content is not None:
        (tmp_path / "m.onnx").write_bytes(content)
    assert _run(tmp_path / "m.onnx") == 2
    assert re.search(message, capsys.readouterr().err)


def test_without_tensorrt_it_says_what_to_install(
    model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    engine_fakes.remove(monkeypatch)
    assert _run(model) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert re.fullmatch(
        r"error: TensorRT: expected the Python package tensorrt, found none that loads \(.*\); `pip install tensorrt` "
        r"\(8.4 or later\), or run the .onnx with `--backend onnxruntime`\n",
        printed.err,
    )


def test_without_cuda_it_says_what_to_install(
    model: Path, device: Device, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setitem(sys.modules, "cuda.cudart", None)
    assert _run(model) == 2
    assert "error: CUDA: expected cuda-python or pycuda, found neither" in capsys.readouterr().err


def test_without_a_gpu_it_says_so(
    model: Path, device: Device, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setitem(sys.modules, "cuda.cudart", Cudart())
    assert _run(model) == 2
    assert "error: CUDA: expected device 0, found 0 devices" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"failure": "2: no memory"},
            "error: TensorRT 8.5.3.1: expected an engine, found: 2: no memory; --verbose",
        ),
        (
            {"unsupported": ("Gather",)},
            "error: model: expected an ONNX that TensorRT 8.5.3.1 parses, found 1 error",
        ),
    ],
)
def test_a_build_that_fails_exits_with_two(
    options: dict, message: str, model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    engine_fakes.install(monkeypatch, **options)
    assert _run(model) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("version", engine_fakes.RELEASES)
def test_an_engine_is_built_reported_and_kept(
    version: str, model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    gpu = Device("NVIDIA H200", (9, 0))
    trt = engine_fakes.install(monkeypatch, version, gpu)
    engine = model.with_suffix(".engine")
    assert _run(model, "--batch", 1, 2, 4) == 0
    printed = capsys.readouterr()
    assert printed.err.splitlines() == [
        f"TensorRT {version}, NVIDIA H200 (9.0), no plugin library: standard operators only",
        f"building {engine}: there is none yet",
    ]
    assert str(engine) in printed.out.replace("\n", "")
    assert re.search(r"batch +│ 1; 2 to 4, tuned for 2 ", printed.out)
    kept = r", \d+ layers kept FP32" if version in engine_fakes.WEAKLY_TYPED else ""
    assert re.search(rf"precision +│ fp16{kept} ", printed.out)
    assert re.search(r"layers +│ \d+ \(\d+ fp", printed.out)
    assert re.search(r"size +│ \d+\.\d MiB", printed.out)
    assert re.search(r"build time +│ \d+ s", printed.out)
    assert gpu.is_clean
    sidecar = Sidecar.load(engine)
    assert sidecar.build["layers"] == sum(sidecar.build["layers_by_precision"].values())
    # Again: nothing is built, and the same is reported.
    assert _run(model, "--batch", 1, 2, 4, "--rebuild", "never") == 0
    again = capsys.readouterr()
    assert again.out == printed.out
    assert len(again.err.splitlines()) == 1
    assert len(trt.created.builds) == 1
    assert _run(model, "--batch", 1, 2, 4, "--rebuild", "always") == 0
    assert len(trt.created.builds) == 2


def test_the_share_of_the_arithmetic_in_fp16_is_reported(
    tmp_path: Path, device: Device, capsys: pytest.CaptureFixture
) -> None:
    model = _dense(tmp_path / "dense.onnx")
    PrecisionPlan((PrecisionGroup("some", "A reason.", ("/small",)),)).save(tmp_path / "dense.plan.json")
    assert _run(model) == 0
    printed = capsys.readouterr().out
    assert re.search(r"dense FLOPs +│ 66\.7% fp16, 33\.3% fp32 ", printed)
    assert re.search(r"layers +│ 2 \(1 fp16, 1 fp32\)", printed)
    assert Sidecar.load(tmp_path / "dense.engine").build["dense_flops_share"] == {
        "int8": 0.0,
        "fp16": 0.6667,
        "fp32": 0.3333,
    }


def test_an_engine_that_is_slower_than_asked_is_refused_and_stays(
    tmp_path: Path, device: Device, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, engine = _dense(tmp_path / "dense.onnx"), tmp_path / "dense.engine"
    layers = [Layer("/large", "CaskConvolution", "fp16"), Layer("/small", "CaskConvolution", "fp32")]
    monkeypatch.setattr(builds, "layers_from", lambda information: layers)
    for _ in range(2):  # the second time it is kept, and judged by its sidecar
        assert _run(model) == 2
        error = " ".join(capsys.readouterr().err.split())
        assert "expected 95% of the dense arithmetic in the precision that is asked for (fp16)" in error
        assert "found 33.3% slower: /small 33.3% (fp32)" in error
        assert "--allow-slower" in error
    assert _run(model, "--allow-slower") == 0
    assert re.search(r"slower than asked +│ 33\.3%: /small", capsys.readouterr().out)
    figures = Sidecar.load(engine).build
    assert figures["node_precisions"] == {"/large": "fp16", "/small": "fp32"}
    assert figures["slower_than_asked"] == {"/small": 0.333333}
    assert _run(model, "--precision", "tf32", "-o", tmp_path / "other.engine") == 0


def test_a_dynamic_model_reports_its_sizes(
    tmp_path: Path, device: Device, capsys: pytest.CaptureFixture
) -> None:
    facts = fakes.metadata(size=None, steps=(Resize(scale=(192, 128), keep_ratio=True),))
    assert _run(fakes.save(tmp_path / "m.onnx", facts)) == 0
    printed = capsys.readouterr().out
    assert re.search(r"height +│ 64 to 192 px, tuned for 128 ", printed)
    assert re.search(r"width +│ 64 to 192 px, tuned for 192 ", printed)
    given = ("--size", "64x96", "96x96", "128x160")
    assert _run(tmp_path / "m.onnx", *given) == 0
    printed = capsys.readouterr()
    assert (
        "height: expected (64, 96, 128), found (64, 128, 192); width: expected (96, 96, 160)" in printed.err
    )
    assert re.search(r"width +│ 96 to 160 px, tuned for 96 ", printed.out)


def test_shapes_by_name_take_the_place_of_sizes(
    tmp_path: Path, device: Device, capsys: pytest.CaptureFixture
) -> None:
    facts = fakes.metadata(size=None)
    model = fakes.save(tmp_path / "m.onnx", facts)
    shapes = "images=1x3x64x64,2x3x64x96,3x3x96x96"
    assert _run(model, "--shape", shapes, "--batch", 1, 2, 3, "-o", tmp_path / "new" / "x.engine") == 0
    data = (tmp_path / "new" / "x.engine").read_bytes()
    assert engine_fakes.opened(data)["profiles"] == [
        {
            "images": [[1, 3, 64, 64], [2, 3, 64, 96], [3, 3, 96, 96]],
            "image_sizes": [[1, 2], [2, 2], [3, 2]],
        }
    ]


def test_a_folder_with_brackets_is_no_markup(
    tmp_path: Path, device: Device, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    fakes.save(tmp_path / "[bold]v2[/]" / "m.onnx")
    assert _run("[bold]v2[/]/m.onnx") == 0
    assert "[bold]v2[/]/m.engine" in capsys.readouterr().out


def test_verbose_prints_tensorrts_log(model: Path, device: Device, capsys: pytest.CaptureFixture) -> None:
    assert _run(model, "--verbose") == 0
    lines = capsys.readouterr().err.splitlines()
    assert "[verbose] =============== Computing costs for " in lines
    assert "[verbose] Formats and tactics selection completed in 0.1 seconds." in lines


@pytest.mark.parametrize("version", [engine_fakes.V8_5, engine_fakes.V10_0])
def test_a_long_build_shows_that_it_lives(
    version: str, model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    engine_fakes.install(monkeypatch, version, build_seconds=0.3)
    monkeypatch.setattr("runtime.console.PROGRESS_SECONDS", 0.05)
    assert _run(model) == 0
    lines = capsys.readouterr().err.splitlines()
    phase = "writing the engine" if version == engine_fakes.V8_5 else r"Building Engine  (\d+)/\1"
    assert sum(bool(re.fullmatch(rf" +\d+ s  {phase}", line)) for line in lines) >= 2


def test_a_terminal_gets_a_bar(
    model: Path, device: Device, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    assert _run(model) == 0
    assert "\x1b[" in capsys.readouterr().err


def test_a_plan_or_none_is_obeyed(model: Path, device: Device, tmp_path: Path) -> None:
    def kept() -> list[str]:
        return engine_fakes.opened(model.with_suffix(".engine").read_bytes())["float32"]

    PrecisionPlan((PrecisionGroup("some", "A reason.", ("boxes",)),)).save(tmp_path / "p.json")
    assert _run(model, "--plan", tmp_path / "p.json") == 0
    assert kept() == ["boxes"]
    assert _run(model, "--no-plan") == 0
    assert kept() == []


def test_a_timing_cache_is_kept(model: Path, device: Device, tmp_path: Path) -> None:
    for precision in ("fp16", "fp32"):
        assert _run(model, "--timing-cache", tmp_path / "t.cache", "--precision", precision) == 0
    assert (tmp_path / "t.cache").read_bytes().count(b"kernel") == 2


def test_the_plugin_library_is_named(
    model: Path,
    device: Device,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    path = tmp_path / "mine.so"
    path.write_bytes(b"content")
    monkeypatch.setattr("ctypes.CDLL", lambda name, mode: object())
    assert _run(model, "--plugins", path) == 0
    assert f"TensorRT 8.5.3.1, NVIDIA H200 (9.0), plugins {path}" in capsys.readouterr().err
    content = json.loads((tmp_path / "m.engine.json").read_text())
    assert content["provenance"]["plugins_sha256"]


def test_profiles_are_named_one_by_one(model: Path, device: Device, capsys: pytest.CaptureFixture) -> None:
    assert _run(model, "--profiles", "1", "2", "3:4:4") == 0
    assert re.search(r"batch +│ 1; 2; 3 to 4, tuned for 4 ", capsys.readouterr().out)
    header = engine_fakes.opened(model.with_suffix(".engine").read_bytes())
    shapes = [profile["images"] for profile in header["profiles"]]
    assert [[shape[0] for shape in ranges] for ranges in shapes] == [[1, 1, 1], [2, 2, 2], [3, 4, 4]]


@pytest.mark.parametrize("value", ["0", "1:2", "2:1:4", "a", "1:2:3:4", "1:9999:9999", ""])
def test_profiles_that_cannot_be_are_refused(
    value: str, model: Path, device: Device, capsys: pytest.CaptureFixture
) -> None:
    assert _run(model, "--profiles", value) == 2
    assert "--profiles: expected " in capsys.readouterr().err
