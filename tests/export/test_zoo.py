"""The zoo's runner: what counts as the same model, how a run goes on, and what dies without ending it."""

import json
import multiprocessing
import os
import signal
import time
from pathlib import Path

import pytest
import torch

from benchmarks import readme
from export.config import shipped_configs
from export.zoo import __main__ as command
from export.zoo import check, workers
from export.zoo import run as zoo_run
from export.zoo.models import (
    NAME_PART,
    ZooConfig,
    code_fingerprint,
    model_key,
    representatives,
    zoo_configs,
)
from export.zoo.results import ZooResults, ranked_reasons
from patches.mmcv_ops import MissingOperatorError
from runtime.comparison.difference import DetectionArrays, compare_image
from tests.models import tiny_config, write_config

COMMITTED = ZooResults.read(command.OUTPUTS["onnxruntime"]).models


def test_the_rule_selects_what_it_says():
    paths = {name: path for name, path in shipped_configs().items() if NAME_PART in name}
    folders = {path.parent for path in paths.values()}
    assert (len(paths), len(folders), sum("mask-rcnn" in name for name in paths)) == (371, 54, 190)


# What is the same model


def test_training_and_weights_do_not_make_another_model():
    first, second = tiny_config(), tiny_config()
    second.model.backbone.update(frozen_stages=1, norm_eval=False, init_cfg={"type": "Pretrained"})
    second.model.update(train_cfg={"rpn": {}}, pretrained="torchvision://resnet50")
    assert model_key(first) == model_key(second)


@pytest.mark.parametrize(
    "change", [{"backbone": {"depth": 34}}, {"test_cfg": {"rcnn": {"score_thr": 0.01}}}], ids=str
)
def test_inference_makes_another_model(change):
    changed = tiny_config()
    changed.merge_from_dict({"model": change})
    assert model_key(changed) != model_key(tiny_config())


def test_resizing_makes_another_model():
    stretched = tiny_config()
    stretched.test_dataloader.dataset.pipeline[1].keep_ratio = False
    assert model_key(stretched) != model_key(tiny_config())


def test_a_config_that_cannot_be_read_says_why(tmp_path):
    folder = tmp_path / "broken"
    folder.mkdir()
    path = folder / "a.py"
    path.write_text("_base_ = './none.py'")
    (config,) = zoo_configs({"a": path})
    assert config.key is None
    assert "none.py" in config.problem
    assert str(tmp_path) not in config.problem


def test_representatives_take_folders_in_turn_and_the_cheap_first():
    configs = [
        ZooConfig("a1", "a", "k1", cost=50),
        ZooConfig("a1-longer", "a", "k1", cost=50),
        ZooConfig("a2", "a", "k2", cost=18),
        ZooConfig("b1", "b", "k3", cost=101),
        ZooConfig("b2", "b", None, problem="unreadable"),
    ]
    assert [config.name for config in representatives(configs)] == ["a2", "b1", "a1"]


def test_fingerprint_follows_what_results_depend_on(tmp_path):
    for name in ("patches/a.py", "export/b.py", "export/zoo/check.py", "export/zoo/results.py"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("")
    seen = [code_fingerprint(tmp_path)]
    for name in ("patches/a.py", "export/b.py", "export/zoo/check.py"):
        (tmp_path / name).write_text("x = 1")
        seen.append(code_fingerprint(tmp_path))
    assert len(set(seen)) == 4
    (tmp_path / "export/zoo/results.py").write_text("x = 1")
    assert code_fingerprint(tmp_path) == seen[-1]


# Processes. They are forked here, which takes milliseconds; what they run needs no PyTorch.


@pytest.fixture
def forked(monkeypatch):
    context = multiprocessing.get_context("fork")
    monkeypatch.setattr(workers, "forkserver_context", lambda *modules: context)


def _behave(how):
    if how == "die":
        os.write(2, b"terminate called\n")
        os.kill(os.getpid(), signal.SIGKILL)
    if how == "hang":
        time.sleep(60)
    if how.startswith("grow"):
        kept = bytearray(int(how.split()[1]) << 20)
        kept[::4096] = b"x" * len(kept[::4096])
        time.sleep(60)
    if how == "raise":
        raise KeyError("lost")
    if how == "exit":
        os._exit(3)
    return how.upper()


@pytest.mark.parametrize(
    ("how", "problem"),
    [
        ("die", "the process died (SIGKILL): terminate called"),
        ("hang", "killed after 1 s"),
        ("grow", "of memory"),
        ("raise", "KeyError: 'lost'"),
        ("exit", "the process died (exit code 3)"),
    ],
)
def test_what_dies_is_a_row_and_not_the_end(forked, how, problem):
    memory = int(workers.resident_mib(os.getpid())) + 200
    limits = workers.Limits(seconds=30 if how == "grow" else 1, memory_mib=memory)
    if how == "grow":
        # The whole limit: how much of this process a child begins with differs.
        how = f"grow {memory}"
    outcomes = list(workers.run_each(_behave, [how, "fine"], limits=limits))
    assert [outcome.argument for outcome in outcomes] == [how, "fine"]
    assert problem in outcomes[0].problem
    assert (outcomes[1].value, outcomes[1].problem) == ("FINE", None)


def test_jobs_run_at_the_same_time(forked):
    start = time.monotonic()
    limits = workers.Limits(seconds=1)
    outcomes = list(workers.run_each(_behave, ["hang"] * 3, jobs=3, limits=limits))
    assert len(outcomes) == 3
    assert time.monotonic() - start < 2.5


def test_nothing_begins_after_the_deadline_and_what_runs_ends(forked):
    assert list(workers.run_each(_behave, ["a", "b"], deadline=time.monotonic() - 1)) == []
    calls = workers.run_each(
        _behave, ["hang", "b"], limits=workers.Limits(1), deadline=time.monotonic() + 0.5
    )
    assert [outcome.argument for outcome in calls] == ["hang"]


def test_a_caller_that_stops_leaves_no_process(forked):
    calls = workers.run_each(_behave, ["a", "hang"], jobs=2)
    next(calls)
    calls.close()
    assert multiprocessing.active_children() == []


def test_a_runner_that_is_killed_leaves_no_process(forked, tmp_path):
    def run():
        list(workers.run_each(_write_and_hang, [str(tmp_path / "worker")]))

    runner = multiprocessing.get_context("fork").Process(target=run)
    runner.start()
    worker = int(
        _eventually(lambda: (tmp_path / "worker").read_text() if (tmp_path / "worker").is_file() else "")
    )
    os.kill(runner.pid, signal.SIGKILL)
    runner.join(10)
    assert runner.exitcode is not None
    assert _eventually(lambda: workers.resident_mib(worker) == 0)


def _write_and_hang(path):
    Path(path).write_text(str(os.getpid()))
    time.sleep(60)


def _eventually(condition, seconds=10.0):
    end = time.monotonic() + seconds
    while not (value := condition()) and time.monotonic() < end:
        time.sleep(0.05)
    return value


# A run

CONFIGS = [
    ZooConfig("one_1x", "a", "k1"),
    ZooConfig("one_2x", "a", "k1"),
    ZooConfig("two", "b", "k2"),
    ZooConfig("broken", "b", None, problem="needs | mmpretrain"),
]


def _measure(name, threads, backend):
    result, reason = {"one_1x": ("exact", ""), "two": ("refused", "roi_head: found Odd.")}[name]
    figures = {"detections": [3, 3], "matched": [3, 3], "box_px": 1e-3, "score": 1e-5, "mask": 2e-4}
    return {"result": result, "reason": reason, "seconds": 1.0, **(figures if result == "exact" else {})}


@pytest.fixture
def zoo(forked, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(zoo_run, "zoo_configs", lambda: CONFIGS)
    monkeypatch.setattr(zoo_run, "measure", _measure)
    monkeypatch.setattr(zoo_run, "code_fingerprint", lambda: "code1")

    def run(*args):
        code = command.main(["-o", str(tmp_path / "zoo.json"), *args])
        return code, "".join(capsys.readouterr())

    return run


def test_one_measurement_serves_every_config_of_a_model(zoo, tmp_path):
    code, printed = zoo()
    assert code == 0
    assert "4 configs: 2 exact, 1 refused, 1 unbuildable" in printed
    assert "1 refused: roi_head: found Odd." in printed
    content = json.loads((tmp_path / "zoo.json").read_text())
    assert {c["config"]: c["result"] for c in content["configs"]} == {
        "one_1x": "exact",
        "one_2x": "exact",
        "two": "refused",
        "broken": "unbuildable",
    }
    assert content["configs"][1]["measured_with"] == "one_1x"


def test_a_run_goes_on_where_the_last_one_stopped(zoo, monkeypatch):
    assert "2 distinct models, 2 to measure" in zoo("--minutes", "0")[1]
    assert "1 to measure" in zoo("--only", "one_2x")[1]
    assert "1 to measure" in zoo("--retry", "pending", "--minutes", "0")[1]
    assert "1 to measure" in zoo()[1]
    assert "0 to measure" in zoo()[1]
    monkeypatch.setattr(zoo_run, "code_fingerprint", lambda: "code2")
    assert "2 models were measured with other code" in zoo("--minutes", "0")[1]
    assert "1 to measure" in zoo("--retry", "refused,wrong")[1]
    assert "1 to measure" in zoo()[1]


def test_a_backend_has_results_of_its_own(zoo, monkeypatch, tmp_path):
    assert set(command.OUTPUTS) == {"onnxruntime", "openvino"}
    monkeypatch.setattr(zoo_run, "measure", _backend)
    zoo("--backend", "openvino")
    rows = json.loads((tmp_path / "zoo.json").read_text())["models"]
    assert [row["reason"] for row in rows] == ["openvino", "openvino"]


def _backend(name, threads, backend):
    return {"result": "refused", "reason": backend, "seconds": 1.0}


def test_failures_are_the_exit_code(zoo, monkeypatch):
    monkeypatch.setattr(zoo_run, "measure", _behave)  # takes one argument: raises
    code, printed = zoo("--folder", "a")
    assert code == 1
    assert "2 failed: TypeError" in printed


def test_a_selection_of_nothing_is_refused(zoo):
    code, printed = zoo("--only", "yolo")
    assert code == 2
    assert "found none of 4; folders: a, b" in printed


def test_another_file_is_not_overwritten(zoo, tmp_path):
    (tmp_path / "zoo.json").write_text("[]")
    code, printed = zoo()
    assert code == 2
    assert "expected results of export.zoo" in printed


def test_readme_tables(zoo, tmp_path, monkeypatch):
    zoo("--only", "one")
    monkeypatch.setattr(readme, "RESULTS", tmp_path)
    totals = readme.zoo()
    assert "| all two-stage | 4 | 2 |  | 1 |  | 1 |" in totals
    assert "1 distinct models, 1 of them exact: boxes within 1.0e-03 px" in totals
    zoo()
    lines = readme.zoo_folders().splitlines()
    assert "| `a` | 2 | 2 |  |  |  |  |  |" in lines
    assert r"| `b` | 2 |  | 1 | 1 |  |  | 1× roi_head: found Odd.<br>1× needs \| mmpretrain |" in lines


# One config


def test_a_tiny_model_is_exact(tmp_path):
    path = write_config(tiny_config(), tmp_path / "tiny.py")
    row = check.measure(str(path), 1)
    assert row["result"] == "exact", row
    assert row["matched"] == row["detections"]
    assert min(row["detections"]) > 0


def test_a_refusal_is_named_before_tracing(tmp_path):
    found = check.check_config("retinanet_r50_fpn_1x_coco", tmp_path / "m.onnx", 1)
    assert (found.result, found.stage) == ("refused", "load")
    assert "expected a two-stage detector" in found.reason


def test_what_mmdet_cannot_build_is_named(tmp_path):
    config = tiny_config()
    config.model.backbone.type = "mmpretrain.ConvNeXt"
    path = write_config(config, tmp_path / "m.py")
    found = check.check_config(str(path), tmp_path / "m.onnx", 1)
    assert found.result == "unbuildable"
    assert "mmpretrain.ConvNeXt" in found.reason


@pytest.mark.parametrize(
    ("error", "result", "reason"),
    [
        (MissingOperatorError("border_align: needs mmcv"), "unbuildable", "border_align: needs mmcv"),
        (
            RuntimeError("no such\n op. Please feel free to"),
            "failed",
            "load: RuntimeError: no such op",
        ),
    ],
)
def test_an_error_is_a_result(monkeypatch, tmp_path, error, result, reason):
    def load_model(*args, **options):
        raise error

    monkeypatch.setattr(check, "load_model", load_model)
    found = check.check_config("any", tmp_path / "m.onnx", 1)
    assert (found.result, found.reason) == (result, reason)


def _case(expected, found):
    box = torch.tensor([[10.0, 10.0, 50.0, 40.0]]).numpy()

    def arrays(count):
        return DetectionArrays(box[:count], box[:count, 0] / 20, box[:count, 0].astype(int))

    return check.Case(2, 1, (256, 384), compare_image(arrays(expected), arrays(found)))


@pytest.mark.parametrize(
    ("expected", "found", "result", "words"),
    [
        (1, 1, "exact", ""),
        (1, 0, "wrong", "batch 2, image 1, 0 of 1 matched: no counterpart of expected #0 label 10"),
        (0, 1, "wrong", "no counterpart of found #0"),
        (0, 0, "failed", "no detections to compare"),
    ],
)
def test_verdict(expected, found, result, words):
    verdict, reason = check._verdict([_case(expected, found)])
    assert verdict == result
    assert words in reason


# What is committed


def test_committed_results_name_every_reason():
    assert COMMITTED
    for row in COMMITTED.values():
        assert row["result"] == "exact" or row["reason"], row
        assert "\n" not in row["reason"], row


def test_no_committed_result_is_wrong():
    assert [row["config"] for row in COMMITTED.values() if row["result"] in ("wrong", "failed")] == []


@pytest.mark.parametrize(("name_part", "least"), [("rcnn", 0.8), ("mask-rcnn", 0.9)])
def test_most_configs_are_exact(name_part, least):
    rows = json.loads(command.OUTPUTS["onnxruntime"].read_text())["configs"]
    results = [row["result"] for row in rows if name_part in row["config"].replace("_rcnn", "-rcnn")]
    assert results.count("exact") >= least * len(results)
    assert "pending" not in results


def test_reasons_are_ranked_by_configs():
    rows = {
        "k1": {"model": "k1", "result": "refused", "reason": "r", "config": "one_1x"},
        "k2": {"model": "k2", "result": "refused", "reason": "s", "config": "two"},
    }
    ranked = ranked_reasons(CONFIGS, rows)
    assert ranked == [("refused", "r", 2), ("refused", "s", 1), ("unbuildable", "needs | mmpretrain", 1)]


def _one_exact_per_folder():
    rows = sorted(COMMITTED.values(), key=lambda row: row["seconds"])
    paths = shipped_configs()
    chosen = {}
    for row in rows:
        if row["result"] == "exact":
            chosen.setdefault(paths[row["config"]].parent.name, row["config"])
    return sorted(chosen.values())


@pytest.mark.slow
@pytest.mark.parametrize("name", _one_exact_per_folder())
def test_what_was_exact_still_is(tmp_path: Path, name):
    found = check.check_config(name, tmp_path / "m.onnx", torch.get_num_threads())
    assert found.result == "exact", found
