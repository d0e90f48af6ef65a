"""``python -m benchmarks.latency``: which cases run, what becomes of them, and what is computed from them."""

import json
import subprocess
import time
from dataclasses import replace
from pathlib import Path
from typing import Any, Optional

import cv2
import numpy as np
import onnxruntime
import pytest

from benchmarks import readme
from benchmarks.latency import __main__ as command
from benchmarks.latency import host, onnxruntime_side, tensorrt_side
from benchmarks.latency.bars import bars
from benchmarks.latency.cases import Case, Options, Results, run_cases
from benchmarks.latency.layers import dense_nodes, not_dense_share
from benchmarks.latency.measure import gpu_load, gpu_state, repeated, spread
from benchmarks.latency.onnxruntime_side import OnnxRuntimeSide
from benchmarks.latency.outputs import compared_outputs, record_detections
from benchmarks.latency.report import sections
from benchmarks.latency.tensorrt_side import TensorRTSide, calls_per_second
from runtime.backends.onnxruntime import OnnxRuntimeBackend
from runtime.comparison.average_precision import read_dataset
from tests.runtime import fakes
from tests.runtime.engine import fakes as engine_fakes


def _results(path: Path) -> Results:
    return Results(path, {"repeat": 3})


def _case(name: str, run: Any = dict, seconds: float = 1.0) -> Case:
    return Case(*name.split("/"), seconds, run)


def _failing() -> dict:
    raise RuntimeError("out of memory")


def test_the_spread_of_known_values() -> None:
    assert spread(range(11)) == {"median": 5.0, "p10": 1.0, "p90": 9.0, "n": 11}


@pytest.mark.parametrize(("seconds", "expected"), [(60.0, 7), (0.0, 3)], ids=["all", "the least"])
def test_repetitions_end_with_the_time(seconds: float, expected: int) -> None:
    calls = []
    found = repeated(lambda: calls.append(0) or {"a": float(len(calls))}, repeat=7, seconds=seconds, warmup=1)
    assert found["a"]["n"] == expected
    assert len(calls) == expected + 1
    assert found["a"]["median"] == 2 + (expected - 1) / 2  # the warm-up's 1 is not among them


NVIDIA_SMI = """#!/bin/sh
case "$*" in
*-lms*) while true; do echo 80; echo 90; sleep 0.05; done ;;
*clocks.sm*) echo "1980 MHz, 1980 MHz, 2619 MHz, 345.67 W, 41, 93 %" ;;
esac
"""


def test_what_nvidia_smi_says_before_and_meanwhile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert gpu_state() is None
    with gpu_load() as load:
        pass
    assert (load.share, load.problem) == (None, "no nvidia-smi")
    (tmp_path / "nvidia-smi").write_text(NVIDIA_SMI)
    (tmp_path / "nvidia-smi").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    state = gpu_state()
    assert (state["clocks.sm"], state["power.draw"]) == ("1980 MHz", "345.67 W")
    with gpu_load() as load:
        time.sleep(0.5)
    assert load.share == pytest.approx(0.85, abs=0.03)
    assert load.problem == ""


def test_cases_are_saved_one_by_one_and_not_run_again(tmp_path: Path) -> None:
    path = tmp_path / "r.json"
    seen = []

    def look() -> dict:
        seen.append(list(json.loads(path.read_text())["cases"]))
        return {"batch": 1}

    cases = [_case("a/x/one"), _case("a/x/bad", _failing), _case("a/x/two", look)]
    assert run_cases(cases, _results(path)) == []
    assert seen == [["a/x/one", "a/x/bad"]]
    again = _results(path)
    assert again.data["cases"]["a/x/bad"]["error"] == "RuntimeError: out of memory"
    run_cases(cases, again)
    assert len(seen) == 1
    run_cases([_case("a/x/bad", lambda: {"batch": 2})], again, retry=True)
    assert _results(path).data["cases"]["a/x/bad"]["batch"] == 2


def test_only_what_is_asked_for_and_what_there_is_time_for(tmp_path: Path) -> None:
    results = _results(tmp_path / "r.json")
    cases = [_case("a/x/short"), _case("a/x/long", seconds=100.0), _case("b/x/short")]
    left = run_cases(cases, results, only=["a/*"], deadline=time.monotonic() + 50)
    assert left == ["a/x/long"]
    assert list(results.data["cases"]) == ["a/x/short"]


def test_another_run_is_not_gone_on_with(tmp_path: Path) -> None:
    _results(tmp_path / "r.json").save()
    with pytest.raises(
        ValueError, match=r"expected a run with the same settings, found another \(\{'repeat': 4\}"
    ):
        Results(tmp_path / "r.json", {"repeat": 4})
    with pytest.raises(FileNotFoundError, match="expected results to report, found nothing"):
        Results(tmp_path / "gone.json")


def test_outputs_are_compared_with_the_reference(options: Options, tmp_path: Path) -> None:
    """The second box of an image moved by 3 px of 96; its class at AP 0 for that image."""
    dataset = read_dataset(options.dataset / "annotations.json", options.dataset)
    reference, moved = tmp_path / "reference.npz", tmp_path / "moved.npz"
    backend = OnnxRuntimeBackend(options.model)
    batches = [[image.path] for image in dataset.images]
    with pytest.raises(FileNotFoundError, match="run the case pytorch/fp32/outputs first"):
        compared_outputs(moved, reference, dataset)
    record_detections(host.detected(backend, batches), reference, backend.metadata, "reference")
    found = list(host.detected(backend, batches))
    found[0][1].boxes[1] += 3.0
    found[1] = (found[1][0], found[1][1].select(np.array([0, 2])))
    record_detections(found, moved, backend.metadata, "moved")
    result = compared_outputs(moved, reference, dataset)
    assert (result["expected"], result["found"], result["matched"]) == (6, 5, 5)
    assert result["matched_share"] == pytest.approx(5 / 6)
    assert (result["box_px"]["median"], result["box_px"]["max"]) == (0.0, pytest.approx(3.0))
    assert result["best_unmatched_score"] == pytest.approx(0.5)
    assert result["minus_reference"]["box"]["AP"] < 0
    other = tmp_path / "other.npz"
    record_detections(found, other, replace(backend.metadata, size=(96, 96)), "another size")
    with pytest.raises(
        ValueError, match="--size: expected that of the model, .64, 96., found a reference recorded"
    ):
        compared_outputs(moved, other, dataset)
    same = compared_outputs(reference, reference, dataset)
    assert (same["matched_share"], same["box_px"]["max"], same["minus_reference"]["mask"]["AP"]) == (
        1.0,
        0.0,
        0.0,
    )


def test_what_is_dense_in_an_engine() -> None:
    flops = {"conv": 1.0, "fc": 1.0, "side": 1.0}
    times = {
        "conv + relu": 3.0,
        "a || side": 1.0,
        "fc": 2.0,
        "TopK": 1.5,
        "{ForeignNode[a...conv]}": 0.5,
        "Reformatting CopyNode for Input Tensor 0 to x + conv": 2.0,
    }
    assert not_dense_share(times, flops) == pytest.approx(0.4)
    assert not_dense_share({}, flops) is None


def test_dense_nodes_are_read_from_the_layers_names() -> None:
    times = {
        "/backbone/conv1/Conv + /backbone/relu/Relu": 1.0,
        "/rpn_head/rpn_cls/Conv_2 || /rpn_head/rpn_reg/Conv_2": 1.0,
        "Reformatting CopyNode for Input Tensor 0 to /neck/Conv": 1.0,
        "reshape_after_/bbox_head/fc_reg/Gemm + /Reshape_4": 1.0,
        "/GroupedNMS": 1.0,
    }
    found = dense_nodes(times)
    assert found == {
        "/backbone/conv1/Conv",
        "/rpn_head/rpn_cls/Conv_2",
        "/rpn_head/rpn_reg/Conv_2",
        "/neck/Conv",
    }
    assert not_dense_share(times, found) == pytest.approx(0.6)


def test_calls_of_several_threads_and_their_failures() -> None:
    assert calls_per_second([lambda: time.sleep(0.005)] * 2, 0.1) == pytest.approx(400, rel=0.5)
    with pytest.raises(RuntimeError, match="out of memory"):
        calls_per_second([lambda: time.sleep(0.001), _failing], 0.1)


def _timed(**ms: float) -> dict:
    return {"ms": {stage: spread([value]) for stage, value in ms.items()}}


CASES = {
    "tensorrt/fp16_graph/batch-1": _timed(engine=2.5),
    "tensorrt/fp16_graph/batch-8": _timed(engine=12.0),
    "tensorrt/fp16_full_graph/batch-8": _timed(engine=12.6),
    "pytorch/fp32/batch-1": {**_timed(network=20.0, network_and_paste=26.0), "memory": None},
    "pytorch/fp32/batch-8": {
        **_timed(network=150.0, network_and_paste=189.0),
        "memory": {"device_mib": 3000.0},
    },
    "pytorch/tf32/batch-8": {
        **_timed(network=48.0, network_and_paste=63.0),
        "memory": {"device_mib": 2000.0},
    },
    "pytorch/compile/batch-8": {"error": "RuntimeError: no compiler"},
    "tensorrt/fp16/layers": {"not_dense_share": {"1": 0.3, "8": 0.2}},
    "tensorrt/fp16_graph/end_to_end_device": {
        "images_per_s": 450.0,
        "gpu_busy_events": None,
        "gpu_busy_nvidia_smi": 0.79,
    },
    "tensorrt/fp16_graph/memory": {"device_mib": 1999.0},
}
EXPECTED = {
    "engine, masks crop, batch 1, ms": (2.5, True),
    "engine, masks crop, batch 8, ms": (12.0, False),
    "engine, masks full, batch 1: ms per image more": (None, None),
    "engine, masks full, batch 8: ms per image more": (0.075, True),
    "times PyTorch's eager FP32, crop, batch 1": (8.0, False),
    "times PyTorch's best mode, crop, batch 1": (8.0, True),
    "times PyTorch's eager FP32, full, batch 1": (None, None),
    "times PyTorch's best mode, full, batch 1": (None, None),
    "times PyTorch's eager FP32, crop, batch 8": (12.5, True),
    "times PyTorch's best mode, crop, batch 8": (4.0, False),
    "times PyTorch's eager FP32, full, batch 8": (15.0, True),
    "times PyTorch's best mode, full, batch 8": (5.0, True),
    "share of layers that are not dense, batch 1": (0.3, False),
    "share of layers that are not dense, batch 8": (0.2, True),
    "one 1080x1920 image, host memory to run lengths, ms": (None, None),
    "JPEG files to run lengths, images/s": (450.0, True),
    "GPU busy meanwhile, share": (0.79, False),
    "peak memory at batch 8, MiB, below PyTorch's least": (1999.0, True),
}


def test_every_bar_has_its_figure_or_none() -> None:
    found = {
        bar.what: (bar.found if bar.found is None else pytest.approx(bar.found), bar.met)
        for bar in bars(CASES)
    }
    assert found == EXPECTED
    assert all(bar.found is None and bar.met is None for bar in bars({}))


def test_tables_of_no_results_are_left_out() -> None:
    data = {"settings": {}, "circumstances": {}, "skipped": {}, "cases": {}}
    assert [section.title for section in sections(data)] == ["What is promised"]


def test_the_readme_has_medians_and_what_is_promised(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(readme, "RESULTS", tmp_path)
    average = {"box": {"AP": 0.8}, "mask": {"AP": 0.7}}
    outputs = {
        "matched": 9,
        "expected": 10,
        "box_px": {"median": 0.03, "max": 9.5},
        "average_precision": average,
        "minus_reference": {"box": {"AP": -0.0003}, "mask": {"AP": -0.0053}},
    }
    cases = {**CASES, "tensorrt/fp16_full/outputs": outputs}
    data = {
        "settings": {},
        "circumstances": {},
        "skipped": {"onnxruntime/cuda_tf32": "none here"},
        "cases": cases,
    }
    (tmp_path / "latency_h200.json").write_text(json.dumps(data))
    shown, rest = readme.latency(), readme.latency_details()
    # Batches of 2 and 4 were measured nowhere.
    assert "| ms per batch: median | 1 | 8 | MiB at 8 | build, s |" in shown
    assert "| PyTorch FP32, masks pasted | 26.00 | 189.00 | 3000 |" in shown
    assert "| PyTorch FP32, masks pasted | 26.00 (26.00 to 26.00) | 189.00 (189.00 to 189.00) |" in rest
    assert "| engine, masks crop, batch 8, ms | <= 11.5 | 12 | NOT MET |" in shown
    assert "| times PyTorch's best mode, full, batch 1 | >= 5 |  | not measured |" in shown
    assert "| TensorRT FP16, masks full | 9 of 10 | -0.0003 | -0.0053 |" in shown
    assert "Mask AP of `masks full` differs because" in shown
    assert (
        "| TensorRT FP16, masks full | 9 of 10 | 0.03 / 9.5 | 0.8000 | -0.0003 | 0.7000 | -0.0053 |" in rest
    )
    assert "| onnxruntime/cuda_tf32 | none here |" in rest
    assert "none here" not in shown


def test_a_page_that_is_not_as_the_results_say(tmp_path: Path) -> None:
    (tmp_path / "old.md").write_text("a")
    texts = {tmp_path / "old.md": "b", tmp_path / "gone.md": "c", tmp_path / "same.md": "d"}
    (tmp_path / "same.md").write_text("d")
    assert readme.outdated(texts) == [tmp_path / "old.md", tmp_path / "gone.md"]


@pytest.fixture
def box(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine with TensorRT 8.5, whose engines onnxruntime computes."""
    engine_fakes.install(monkeypatch, engine_fakes.V8_5)


def _record_reference(options: Options) -> None:
    """Have onnxruntime in PyTorch's place."""
    backend = OnnxRuntimeBackend(options.model)
    dataset = read_dataset(options.dataset / "annotations.json", options.dataset)
    found = host.detected(backend, [[image.path] for image in dataset.images])
    record_detections(found, options.reference, backend.metadata, "reference")


def test_the_tensorrt_side_on_the_host_path(
    box: None, options: Options, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reference = OnnxRuntimeBackend(options.model)
    dataset = read_dataset(options.dataset / "annotations.json", options.dataset)
    options.folder.mkdir()
    batches = [[image.path] for image in dataset.images]
    record_detections(host.detected(reference, batches), options.reference, reference.metadata, "reference")
    monkeypatch.setattr(tensorrt_side, "VARIANTS", {"fp32": tensorrt_side.Variant("fp32")})
    side, results = TensorRTSide(options), _results(tmp_path / "r.json")
    assert run_cases(side.cases(), results) == []
    cases = results.data["cases"]
    assert {name: case["error"] for name, case in cases.items() if "error" in case} == {}
    assert list(cases) == [f"tensorrt/fp32/{k}" for k in ("build", "batch-1", "batch-2", "outputs", "layers")]
    assert cases["tensorrt/fp32/build"]["build"]["seconds"] >= 0
    assert set(cases["tensorrt/fp32/batch-2"]["ms"]) == {"copy_in", "engine", "copy_out", "run"}
    assert cases["tensorrt/fp32/outputs"]["matched_share"] == 1.0
    assert cases["tensorrt/fp32/outputs"]["box_px"]["max"] == 0.0
    assert set(cases["tensorrt/fp32/layers"]["not_dense_share"]) == {"1", "8"}


def test_the_tensorrt_side_on_the_device_path(
    box: None, options: Options, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine_fakes.put_plugins(monkeypatch, tmp_path)
    _record_reference(options)
    variant = tensorrt_side.Variant("fp32", cuda_graphs=True, is_whole=True)
    monkeypatch.setattr(tensorrt_side, "VARIANTS", {"fp32_graph": variant})
    side, results = TensorRTSide(options), _results(tmp_path / "r.json")
    assert run_cases(side.cases(), results) == []
    cases = {name.split("/")[2]: case for name, case in results.data["cases"].items()}
    assert {name: case["error"] for name, case in cases.items() if "error" in case} == {}
    stages = {"copy_in", "prepare", "engine", "encode", "copy_out", "total"}
    assert set(cases["device-2"]["ms"]) == set(cases["image_device"]["ms"]) == stages
    assert set(cases["batch-2"]["stages_ms"]) == {"decode", "preprocess", "run", "to_rle"}
    assert cases["device-2"]["device_failure"] == ""
    assert cases["outputs_device"]["matched_share"] == 1.0
    assert cases["outputs_device"]["mask_share_of_union"] == 0.0
    whole = cases["end_to_end_device"]
    assert (whole["images"], whole["detections"]) == (8, 24)
    assert set(whole["stages_ms_in_all"]) == {*stages, "read"} - {"total"}
    assert whole["gpu_busy_events"] > 0
    assert cases["memory"]["device_mib"] > 0
    assert set(cases["threads-2"]["images_per_s_device"]) == {"1", "8"}


def test_variants_without_their_model_are_skipped(box: None, options: Options) -> None:
    side = TensorRTSide(options)
    assert side.skipped == {"fp16_full": "no --full", "fp16_full_graph": "no --full"}
    with_full = TensorRTSide(replace(options, full=fakes.save(options.folder / "f.onnx")))
    assert {case.variant for case in with_full.cases()} == set(tensorrt_side.VARIANTS)


def test_onnxruntime_from_files_to_run_lengths(options: Options, tmp_path: Path) -> None:
    side, results = OnnxRuntimeSide(options), _results(tmp_path / "r.json")
    run_cases(side.cases(), results, only=["*/cpu/image", "*/cpu/end_to_end"])
    side.close()
    image, whole = results.data["cases"].values()
    stages = {stage: times["median"] for stage, times in image["ms"].items()}
    assert set(stages) == {"preprocess", "run", "to_rle", "total"}
    assert stages["total"] == max(stages.values())
    # Files are taken again until they fill a batch of 8; every image has the fake's three detections.
    assert (whole["images"], whole["detections"]) == (8, 24)
    assert whole["images_per_s"] == pytest.approx(8 / whole["wall_s"])


def test_onnxruntime_on_a_gpu_times_the_network_alone_and_with_its_copies(
    options: Options, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The CPU in a GPU's place: what is opened, what is measured."""
    opened, on_device = [], onnxruntime_side.run_on_device

    def backend(model: Path, *, device: str, precision: Optional[str], **others: Any) -> OnnxRuntimeBackend:
        opened.append((model.name, device, precision))
        return OnnxRuntimeBackend(model, **others)

    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CUDAExecutionProvider"])
    side, results = OnnxRuntimeSide(options), _results(tmp_path / "r.json")
    monkeypatch.undo()
    monkeypatch.setattr(onnxruntime_side, "OnnxRuntimeBackend", backend)
    monkeypatch.setattr(onnxruntime_side, "run_on_device", lambda s, batch: on_device(s, batch, "cpu"))
    options.folder.mkdir()
    assert run_cases(side.cases(), results, only=["*/cuda_*/batch-2"]) == []
    side.close()
    cases = results.data["cases"]
    assert {name: case["error"] for name, case in cases.items() if "error" in case} == {}
    assert [set(case["ms"]) for case in cases.values()] == [{"engine", "run"}] * 3
    stem = options.model.stem
    assert opened == [
        (f"{stem}.onnx", "cuda", "tf32"),
        (f"{stem}.typed.onnx", "cuda", None),
        (f"{stem}.onnx", "cuda", "fp32"),
    ]


def test_without_cuda_onnxruntimes_gpu_variants_are_skipped_by_name(options: Options) -> None:
    side = OnnxRuntimeSide(options)
    assert {case.variant for case in side.cases()} == {"cpu"}
    assert set(side.skipped) == {"cuda_tf32", "cuda_fp16", "cuda_fp32"}
    assert "here has only" in side.skipped["cuda_fp16"]


def test_the_command_goes_on_where_it_was_stopped(
    options: Options, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    out = tmp_path / "latency.json"
    arguments = ["--model", options.model, "--dataset", options.dataset, "--out", out, "--size", 64, 96]
    arguments += ["--sides", "onnxruntime", "--only", "onnxruntime/cpu/batch-*", "--batches", 1, 2]
    arguments += ["--engines", options.folder, "--repeat", 3, "--seconds", 0]
    assert command.main([str(a) for a in arguments]) == 0
    assert "onnxruntime/cpu/batch-2: " in capsys.readouterr().out
    assert cv2.imread(str(out.with_suffix(".png"))) is not None
    before = out.read_bytes()
    assert command.main([str(a) for a in arguments]) == 0
    assert "onnxruntime/cpu/batch-2: " not in capsys.readouterr().out
    assert json.loads(out.read_bytes())["cases"] == json.loads(before)["cases"]
    assert command.main(["--report", "--out", str(out)]) == 0
    assert "onnxruntime CPU" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--dataset", "d", "--config", "c"], "--config, --checkpoint: expected both or neither"),
        ([], "--dataset: expected a folder with annotations.json"),
        (["--report", "--out", "gone.json"], "expected results to report, found nothing"),
    ],
)
def test_what_is_refused(
    arguments: list,
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert command.main(arguments) == 2
    assert message in capsys.readouterr().err


def test_pytorch_gets_its_own_interpreter(
    options: Options, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without what makes this one's: TensorRT's Python 3.9 sets PYTHONHOME."""
    calls = []

    def start(arguments: list, env: dict, timeout: float) -> subprocess.CompletedProcess:
        calls.append((arguments, env, timeout))
        return subprocess.CompletedProcess(arguments, 0)

    monkeypatch.setattr(subprocess, "run", start)
    monkeypatch.setenv("PYTHONHOME", "/py39")
    monkeypatch.setenv("LD_LIBRARY_PATH", "/py39/lib")
    argv = ["--dataset", str(options.dataset), "--out", str(tmp_path / "r.json"), "--sides", "pytorch"]
    argv += ["--pytorch-python", "PYTHONPATH=/a:/b X=1=2 python3 -u", "--minutes", "5"]
    argv += ["--engines", str(options.folder)]
    assert command.main(argv) == 0
    ((arguments, env, timeout),) = calls
    assert arguments[:4] == ["python3", "-u", "-m", "benchmarks.latency"]
    assert (env["PYTHONPATH"], env["X"]) == ("/a:/b", "1=2")
    assert "PYTHONHOME" not in env
    assert "LD_LIBRARY_PATH" not in env
    assert 200 < timeout < 300
    child = command._parser().parse_args(arguments[4:])
    assert (child.sides, child.pytorch_python, child.no_report) == (["pytorch"], "", True)
    assert child.minutes == pytest.approx(timeout / 60)
