"""Files -> detections: order, damaged files, batches under way, bounded memory, errors, and ends before the end."""

import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Optional

import cv2
import numpy as np
import pytest

from runtime import Detector, pipeline
from runtime.host.preprocess import prepare
from runtime.images import read_image
from runtime.pipeline import FileResult, detect_files, in_threads, run_batches
from runtime.transforms import Resize
from tests.runtime import fakes
from tests.runtime.device.test_runner import assert_same, config, save
from tests.runtime.engine import fakes as engine_fakes
from tests.runtime.engine.fake_cuda import Device
from tests.runtime.engine.fake_kernels import FakeLibrary

NUM_FILES = 11
DAMAGED = (3, 4, 10)


@pytest.fixture
def paths(tmp_path: Path) -> list[Path]:
    """Images of different sizes, of which three are damaged, the last one among them."""
    paths = []
    for index in range(NUM_FILES):
        path = tmp_path / f"{index}.png"
        image = fakes.random_image(40 + 31 * index % 90, 50 + 47 * index % 110, index)
        path.write_bytes(cv2.imencode(".png", image)[1].tobytes())
        if index in DAMAGED:
            path.write_bytes(b"no image")
        paths.append(path)
    return paths


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Device:
    gpu = Device()
    engine_fakes.install(monkeypatch, engine_fakes.V8_5, gpu)
    engine_fakes.put_plugins(monkeypatch, tmp_path, FakeLibrary())
    return gpu


def _open(model: Path, backend: str, batch_size: int) -> Detector:
    options = {"threads": 1} if backend == "onnxruntime" else {"config": config(1, 1, 4)}
    return Detector(model, backend, batch_size=batch_size, **options)


@pytest.mark.parametrize("batch_size", [1, 2, 3, 4])
@pytest.mark.parametrize("backend", ["onnxruntime", "tensorrt"])
def test_files_have_the_results_of_their_images_in_order(
    backend: str, batch_size: int, paths: list[Path], tmp_path: Path, device: Device
) -> None:
    model = save(tmp_path / "m.onnx")
    with Detector(model, "onnxruntime", threads=1) as host:
        alone = {p: host([read_image(p)]) for i, p in enumerate(paths) if i not in DAMAGED}
    with _open(model, backend, batch_size) as detector:
        results = list(detector.detect_files(map(str, paths), threads=3))
        assert [(r.index, r.path) for r in results] == list(enumerate(paths))
        for result in results:
            assert result.image is None
            if result.index in DAMAGED:
                assert result.error.startswith(f"{result.path}: expected an image, found 8 bytes")
                assert result.detections is None
            else:
                assert result.error == ""
                assert_same([result.detections], alone[result.path])
    assert device.is_clean


@pytest.mark.parametrize("backend", ["onnxruntime", "tensorrt"])
def test_low_scores_can_be_left_out_and_pixels_kept(
    backend: str, paths: list[Path], tmp_path: Path, device: Device
) -> None:
    timings: dict[str, float] = {}
    with _open(save(tmp_path / "m.onnx"), backend, 2) as detector:
        whole = [r.detections for r in detector.detect_files(paths[:3])]
        results = list(detector.detect_files(paths[:3], min_score=0.5, keep_images=True, timings=timings))
    assert_same([r.detections for r in results], [d.filter(0.5) for d in whole])
    assert [len(r.detections) for r in results] == [2, 2, 2]
    for result in results:
        np.testing.assert_array_equal(result.image, read_image(result.path))
    host = {"read", "prepare", "engine", "results"}
    assert set(timings) == (
        host if backend == "onnxruntime" else {"read", "copy_in", "prepare", "engine", "encode", "copy_out"}
    )


def test_what_does_not_fit_is_a_result_that_names_the_file(tmp_path: Path, device: Device) -> None:
    facts = fakes.metadata(steps=(Resize(scale=(96, 64), keep_ratio=True),))
    tall, wide, missing = (tmp_path / name for name in ("tall.png", "wide.png", "missing.png"))
    for path, size in ((tall, (96, 64)), (wide, (64, 96))):
        path.write_bytes(cv2.imencode(".png", fakes.random_image(*size))[1].tobytes())
    for backend in ("onnxruntime", "tensorrt"):
        with _open(save(tmp_path / "m.onnx", facts), backend, 2) as detector:
            first, second, third = detector.detect_files([tall, wide, missing])
        assert first.error.startswith(f"{tall}: image of 96x64 px (height x width): expected to fit")
        assert len(second.detections) == 3
        assert "expected an image, found nothing there" in third.error
        assert str(missing) in third.error


@pytest.mark.parametrize("backend", ["onnxruntime", "tensorrt"])
def test_no_files_and_only_damaged_files(
    backend: str, paths: list[Path], tmp_path: Path, device: Device
) -> None:
    with _open(save(tmp_path / "m.onnx"), backend, 2) as detector:
        assert list(detector.detect_files([])) == []
        assert [bool(r.error) for r in detector.detect_files([paths[3], paths[4]])] == [True, True]


@pytest.mark.parametrize("backend", ["onnxruntime", "tensorrt"])
@pytest.mark.parametrize("num_taken", [0, 1, 5])
def test_closing_early_stops_the_threads_and_keeps_nothing(
    num_taken: int, backend: str, paths: list[Path], tmp_path: Path, device: Device
) -> None:
    good = [p for i, p in enumerate(paths) if i not in DAMAGED]
    with _open(save(tmp_path / "m.onnx"), backend, 2) as detector:
        expected = [r.detections for r in detector.detect_files(good)]
        before = threading.active_count()
        results = detector.detect_files(good * 3, threads=4)
        assert_same([next(results).detections for _ in range(num_taken)], expected[:num_taken])
        results.close()
        assert threading.active_count() == before
        # And nothing that was under way gets in the way.
        assert_same([r.detections for r in detector.detect_files(good)], expected)
    assert device.is_clean


@pytest.mark.parametrize("backend", ["onnxruntime", "tensorrt"])
def test_a_detector_can_be_called_between_results(
    backend: str, paths: list[Path], tmp_path: Path, device: Device
) -> None:
    """All slots belong to the files that are under way: they are finished for the call."""
    good = [p for i, p in enumerate(paths) if i not in DAMAGED]
    with _open(save(tmp_path / "m.onnx"), backend, 1) as detector:
        for result in detector.detect_files(good):
            assert_same(detector([read_image(result.path)]), [result.detections])


@pytest.mark.parametrize("where", ["read", "stage", "submit"])
def test_other_errors_reach_the_caller_and_end_the_threads(
    where: str, paths: list[Path], tmp_path: Path, device: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: Any, **options: Any) -> None:
        raise RuntimeError("stop")

    with _open(save(tmp_path / "m.onnx"), "tensorrt", 2) as detector:
        before = threading.active_count()
        with monkeypatch.context() as patched:
            if where == "read":
                patched.setattr("runtime.pipeline.read_image", fail)
            else:
                patched.setattr(detector._runner, where, fail)
            with pytest.raises(RuntimeError, match="stop"):
                list(detector.detect_files(paths[:3]))
        assert threading.active_count() == before
        assert len(list(detector.detect_files(paths[:3]))) == 3
    assert device.is_clean


class CountingRunner:
    """Runs nothing; knows what is under way and how many images are in memory."""

    num_slots, num_stagers, largest_batch, device_failure = 3, 1, None, ""

    def __init__(self) -> None:
        self.num_staged = 0
        self.events: list[str] = []

    def stage(self, image: np.ndarray) -> int:
        self.num_staged += 1
        return self.num_staged

    def submit(
        self, staged: Sequence[int], min_score: float = 0.0, *, check_masks: bool = False
    ) -> "CountingRunner._Batch":
        self.events.append(f"submit {len(staged)}")
        return self._Batch(self, len(staged))

    def close(self) -> None:
        pass

    class _Batch:
        def __init__(self, runner: "CountingRunner", size: int) -> None:
            self.runner, self.size = runner, size

        def result(self, timings: Optional[dict] = None, problems: Optional[dict] = None) -> list:
            self.runner.events.append(f"result {self.size}")
            return [None] * self.size


def test_as_many_batches_are_under_way_as_there_are_slots() -> None:
    """The next one starts before the caller gets the oldest's results, so that the device is busy meanwhile."""
    runner = CountingRunner()
    for key, _ in run_batches(runner, [(n, [0] * n) for n in (1, 2, 0, 3, 4)]):
        runner.events.append(f"yield {key}")
    assert " ".join(runner.events) == (
        "submit 1 submit 2 result 1 submit 3 yield 1 result 2 submit 4 yield 2 yield 0 result 3 yield 3 "
        "result 4 yield 4"
    )


def test_files_are_not_read_further_ahead_than_a_few_batches(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("runtime.pipeline.read_image", lambda path, load: np.zeros((4, 4, 3), np.uint8))
    runner = CountingRunner()
    results = detect_files(runner, (tmp_path / str(i) for i in range(1000)), batch_size=4, threads=5)
    for taken in range(1, 100):
        assert isinstance(next(results), FileResult)
        # 5 threads, two batches ready, three under way, and the one that is being handed out.
        assert runner.num_staged <= taken + 5 + 6 * 4
    results.close()


def test_threads_work_at_the_same_time_and_in_order() -> None:
    barrier = threading.Barrier(3)

    def work(item: int) -> int:
        barrier.wait(timeout=10)
        time.sleep(0.01 * (3 - item % 3))  # the first is the last to end
        return item * item

    assert list(in_threads(work, range(9), 3, 6)) == [n * n for n in range(9)]
    assert list(in_threads(work, [], 3, 6)) == []


def test_results_equal_those_of_arrays(paths: list[Path], tmp_path: Path, device: Device) -> None:
    """The host's way written out, as ``Backend.run`` has it."""
    from runtime.host.postprocess import detections_from_outputs

    images = [read_image(p) for p in paths[:3]]
    with _open(save(tmp_path / "m.onnx"), "onnxruntime", 3) as detector:
        batch = prepare(images, detector.metadata)
        outputs = detector.backend.run(batch.images, batch.image_sizes)
        assert_same(detector(images), detections_from_outputs(outputs, batch, detector.metadata))


class _CountingError(str):
    """A reason that counts how often it is asked whether it is one."""

    num_looks = 0

    def __bool__(self) -> bool:
        _CountingError.num_looks += 1
        return True


@pytest.mark.parametrize("pattern", ["u", "ru", "uuuur", "r" + "u" * 40])
def test_grouping_is_linear_and_keeps_no_unreadable_file_waiting(pattern: str) -> None:
    """``r`` a file that can be read, ``u`` one that cannot; counted, not timed."""
    num_files, num_read, waiting = 40_000, 0, 0
    _CountingError.num_looks = 0

    def files() -> Any:
        nonlocal num_read
        for index in range(num_files):
            num_read += 1
            error = _CountingError("damaged") if pattern[index % len(pattern)] == "u" else ""
            yield pipeline._ReadFile(index, Path(str(index)), None, error, None, 0.0, None)

    indices: list[int] = []
    for group in pipeline._groups(files(), 8):
        indices += [file.index for file in group]
        assert sum(file.error == "" for file in group) <= 8
        waiting = max(waiting, num_read - indices[0] if len(indices) == len(group) else len(group))
    assert indices == list(range(num_files))
    assert waiting <= pipeline._MOST_WAITING + 8
    assert _CountingError.num_looks <= 3 * num_files


def test_many_unreadable_files_are_done_in_time(fake_model: Path, tmp_path: Path) -> None:
    (tmp_path / "damaged.png").write_bytes(b"no image")
    start = time.monotonic()
    with Detector(fake_model, "onnxruntime", batch_size=8, threads=1) as detector:
        results = list(detector.detect_files([tmp_path / "damaged.png"] * 20_000, threads=2))
    assert len(results) == 20_000
    assert all(result.error for result in results)
    assert time.monotonic() - start < 60  # quadratic, it was minutes


OPTIONS = {
    "batch_size": [0, -1, 1025, 10**6, 1.5, "8", True, float("nan"), None.__class__],
    "threads": [0, -3, 1025, 10**9, 2.0, "2", False],
}


@pytest.mark.parametrize(("name", "value"), [(n, v) for n, values in OPTIONS.items() for v in values])
def test_absurd_numbers_are_refused_at_once(name: str, value: object, fake_model: Path) -> None:
    with pytest.raises(ValueError, match=f"{name}: expected a whole number from 1 to 1024, found"):
        Detector(fake_model, "onnxruntime", **{name: value})
    with Detector(fake_model, "onnxruntime", threads=1) as detector:
        options = {"batch_size": 1, name: value}
        with pytest.raises(ValueError, match=f"{name}: expected a whole number from 1 to 1024, found"):
            list(detect_files(detector._runner, ["a.jpg"], **options))


# Portraits between landscapes: two sizes in the network, and what cannot be read among them.
SHAPES = {"p": (90, 60), "l": (60, 90), "s": (70, 70)}


def _mixed(folder: Path, pattern: str) -> list[Path]:
    paths = []
    for index, kind in enumerate(pattern):
        path = folder / f"{index}.png"
        data = b"no image"
        if kind in SHAPES:
            data = cv2.imencode(".png", fakes.random_image(*SHAPES[kind], index))[1].tobytes()
        path.write_bytes(data)
        paths.append(path)
    return paths


@pytest.mark.parametrize("backend", ["onnxruntime", "tensorrt"])
@pytest.mark.parametrize("pattern", ["plplplpl", "pppl", "plsplsplsx", "xplx", "p", "x", "pxlxpxl" * 5])
def test_by_size_each_image_has_the_results_that_it_has_alone(
    backend: str, pattern: str, tmp_path: Path, device: Device
) -> None:
    model = save(tmp_path / "m.onnx")
    paths = _mixed(tmp_path, pattern)
    with _open(model, backend, 1) as detector:
        expected = list(detector.detect_files(paths))
    with _open(model, backend, 3) as detector:
        found = list(detector.detect_files(paths, by_size=True))
    assert [r.index for r in found] == list(range(len(paths)))
    assert [r.path for r in found] == paths
    assert [bool(r.error) for r in found] == [kind == "x" for kind in pattern]
    have, want = ([r.detections for r in results if not r.error] for results in (found, expected))
    assert_same(have, want)


@pytest.mark.parametrize("batch_size", [1, 2, 8])
def test_files_of_one_size_are_grouped_and_none_waits_long(batch_size: int) -> None:
    generator = np.random.default_rng(batch_size)
    kinds = [
        None if value < 0.2 else (800, 1333 if value < 0.96 else 640) for value in generator.random(4000)
    ]
    kinds[1000:1400] = [None] * 400
    num_read = 0

    def files() -> Any:
        nonlocal num_read
        for index, size in enumerate(kinds):
            num_read += 1
            error = "" if size else "damaged"
            yield pipeline._ReadFile(index, Path(str(index)), None, error, None, 0.0, None, size)

    seen: list[int] = []
    full = 0
    for group in pipeline._groups_by_size(files(), batch_size):
        assert len({file.size for file in group}) == 1
        assert len(group) <= batch_size
        assert num_read - group[0].index <= pipeline._SIZE_WINDOW * batch_size + 1
        seen += [file.index for file in group]
        full += len(group) == batch_size
    assert sorted(seen) == list(range(len(kinds)))
    assert full * batch_size > 0.6 * sum(size is not None for size in kinds)
