"""A model behind a connection: the front end's side and the model's, in one process."""

import errno
import multiprocessing
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Callable

import numpy as np
import pytest

from runtime.detections import Detections
from runtime.host.postprocess import CroppedMasks, FullMasks
from runtime.masks import MaskSource
from runtime.rle import RunLengthMasks
from runtime.serving import peer, remote_runner
from runtime.serving.exchange import Listening, ModelFacts
from runtime.serving.model_turns import Turns
from runtime.serving.peer import Peer
from runtime.serving.remote_runner import Link, RemoteRunner
from tests.runtime import fakes
from tests.runtime.serving.servers import SECONDS, FakeRunner, found, wait_until

PLAIN = fakes.metadata(size=None, steps=(), masks="none")


def pixels(value: int, height: int = 4, width: int = 6) -> np.ndarray:
    return np.full((height, width, 3), value, np.uint8)


class Ends:
    """Both ends of a connection, and the model behind it."""

    def __init__(self, model: Any, metadata: Any = PLAIN, max_batch: int = 4) -> None:
        ours, self._theirs = multiprocessing.Pipe()
        self.is_lost = threading.Event()
        self.turns = Turns(model, metadata, max_batch, "m")
        self.peer = Peer(ours, {"m": self.turns})
        self.link = Link(self._theirs, self.is_lost.set)
        self.runner = RemoteRunner(self.link, "m", ModelFacts(metadata, "onnxruntime", 2, None, ""))
        self.observed: list[int] = []
        self.runner.observe = lambda num_images, timings: self.observed.append(num_images)

    def submitted(self, *values: int, **options: Any) -> Any:
        return self.runner.submit([self.runner.stage(pixels(value)) for value in values], **options)

    def cut(self) -> None:
        """Do what the end of either process does."""
        with socket.socket(fileno=self._theirs.fileno()) as both:
            both.shutdown(socket.SHUT_RDWR)
            both.detach()

    def close(self) -> None:
        self.cut()
        self.turns.close()
        self.peer.close()
        assert self.is_lost.wait(SECONDS)
        self._theirs.close()


@pytest.fixture
def ends(runner: FakeRunner) -> Iterator[Ends]:
    """A connection to the fake model."""
    both = Ends(runner)
    yield both
    runner.may_run.set()
    both.close()


def test_results_are_those_of_the_model(ends: Ends, runner: FakeRunner) -> None:
    runner.unclear.add(3)
    timings: dict[str, float] = {}
    problems: dict[int, str] = {}
    pending = [ends.submitted(1, 2, 3), ends.submitted(4)]
    first, second = (one.result(timings, problems) for one in pending)
    assert sum(runner.batches, []) == [1, 2, 3, 4]
    assert sum(ends.observed) == 4
    assert problems == {2: "NaN"}
    for detections, value in zip((*first, *second), (1, 2, 3, 4)):
        expected = found(pixels(value))
        assert detections.image_size == expected.image_size == (4, 6)
        assert detections.classes == expected.classes
        for name in ("boxes", "scores", "labels"):
            np.testing.assert_array_equal(getattr(detections, name), getattr(expected, name))
    with pytest.raises(RuntimeError, match="NaN"):
        ends.submitted(3).result()


@pytest.mark.parametrize(
    ("error", "kind", "message"),
    [
        (ValueError("image: expected another size"), ValueError, "^image: expected another size$"),
        (RuntimeError("the device was lost"), RuntimeError, "^the device was lost$"),
        (KeyError("dets"), RuntimeError, "^'dets'$"),
        (MemoryError(), RuntimeError, "^MemoryError$"),
    ],
)
def test_what_the_model_raises(
    ends: Ends, runner: FakeRunner, error: Exception, kind: type[Exception], message: str
) -> None:
    runner.spoilt[7] = error
    with pytest.raises(kind, match=message):
        ends.submitted(6, 7).result({}, {})
    assert len(ends.submitted(6).result({}, {})) == 1


def test_what_staging_and_submitting_raise_there(ends: Ends, runner: FakeRunner) -> None:
    def refuses(*arguments: Any, **options: Any) -> None:
        raise ValueError("no such size")

    runner.submit = refuses
    with pytest.raises(ValueError, match="no such size"):
        ends.submitted(1).result({}, {})
    runner.stage = refuses
    with pytest.raises(ValueError, match="no such size"):
        ends.submitted(1).result({}, {})


def test_an_image_that_does_not_fit_is_refused_before_it_is_sent(ends: Ends) -> None:
    with pytest.raises(ValueError, match="uint8"):
        ends.runner.stage(pixels(1).astype(np.float32))


def test_memory_is_used_again_and_grows_with_the_images(ends: Ends, runner: FakeRunner) -> None:
    for value in range(20):
        assert ends.submitted(value).result({}, {})
    assert len(ends.peer._segments) == 1
    runner.may_run.clear()
    under_way = [ends.submitted(1, 2), ends.submitted(3)]
    wait_until(lambda: len(ends.peer._segments) == 3)
    runner.may_run.set()
    for pending in under_way:
        pending.result({}, {})
    large = ends.runner.stage(pixels(9, 1000, 2000))
    (detections,) = ends.runner.submit([large]).result({}, {})
    assert detections.boxes[0, 0] == 9
    assert len(ends.peer._segments) == 3
    sizes = sorted(array.nbytes for array in ends.peer._segments.values())
    assert 6_000_000 <= sizes[-1] <= 6_750_000
    assert sizes[1] < 1_000_000
    del large, pending
    under_way.clear()
    ends.link.pool.trim(idle_s=0)
    wait_until(lambda: not ends.peer._segments)
    assert ends.submitted(5).result({}, {})[0].boxes[0, 0] == 5


def test_memory_that_the_model_s_process_cannot_have_fails_its_images_alone(
    ends: Ends, runner: FakeRunner, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = ends.runner.stage(pixels(1))
    assert ends.runner.submit([kept]).result({}, {})

    def full(*arguments: Any) -> None:
        raise OSError(errno.ENOMEM, "Cannot allocate memory")

    monkeypatch.setattr(peer, "mapped", full)
    other = ends.runner.stage(pixels(2))
    for staged in ([other], [kept, other]):
        with pytest.raises(
            RuntimeError, match="expected room for an image, found none .*Cannot allocate memory"
        ):
            ends.runner.submit(staged).result({}, {})
    assert ends.runner.submit([kept]).result({}, {})[0].boxes[0, 0] == 1
    monkeypatch.undo()
    del other, staged
    ends.link.pool.trim(idle_s=0)
    assert ends.submitted(3).result({}, {})[0].boxes[0, 0] == 3
    assert not ends.peer.is_gone


def test_an_image_stays_until_its_batch_is_answered_and_can_run_again(ends: Ends, runner: FakeRunner) -> None:
    runner.may_run.clear()
    staged = [ends.runner.stage(pixels(1))]
    pending = ends.runner.submit(staged)
    others = [ends.submitted(value) for value in (2, 3)]
    runner.may_run.set()
    for _ in range(2):
        assert pending.result({}, {})[0].boxes[0, 0] == 1
        pending = ends.runner.submit(staged)
    assert [other.result({}, {})[0].boxes[0, 0] for other in others] == [2, 3]


class CountingRunner(FakeRunner):
    """Keeps account of how many batches are under way as each is collected."""

    def __init__(self, num_slots: int) -> None:
        super().__init__(num_slots)
        self.under_way: list[int] = []

    def run(self, staged: list[np.ndarray], problems: Any) -> list[Detections]:
        self.under_way.append(self.num_submitted - len(self.batches))
        return super().run(staged, problems)


@contextmanager
def two_front_ends(model: FakeRunner, max_batch: int) -> Iterator[Callable[..., Any]]:
    """Yield what submits a batch by the one front end or the other; the model waits until it may run."""
    model.may_run.clear()
    both = [Ends(model, max_batch=max_batch) for _ in range(2)]
    turns = both[0].turns
    both[1].peer._turns["m"] = turns
    num_waiting = 0

    def submitted(index: int, *images: np.ndarray, **options: Any) -> Any:
        nonlocal num_waiting
        # The first batch is on its way at once, the others wait.
        num_waiting += len(images) if model.num_submitted else 0
        pending = both[index].runner.submit([both[index].runner.stage(image) for image in images], **options)
        wait_until(lambda: model.num_submitted == 1 and turns.num_waiting == num_waiting)
        return pending

    submitted.observed = lambda: sorted(both[0].observed + both[1].observed)
    try:
        yield submitted
    finally:
        model.may_run.set()
        for one in both:
            one.close()


def values_of(pending: Any) -> list[float]:
    """Return the first pixel of each image, by its results."""
    return [detections.boxes[0, 0] for detections in pending.result({}, {})]


@pytest.mark.parametrize(
    ("num_slots", "max_batch", "batches", "under_way"),
    [
        (2, 1, [[1], [2], [3], [4], [5], [6], [7], [8]], [1, 2, 2, 2, 2, 2, 2, 1]),
        # Of three, the last only where it is full; of six, it does not come to that.
        (3, 2, [[1], [2, 3], [4, 5], [6, 7], [8]], [1, 3, 2, 2, 1]),
        (2, 4, [[1], [2, 3, 4, 5], [6, 7, 8]], [1, 2, 1]),
        (6, 2, [[1], [2, 3], [4, 5], [6, 7], [8]], [1, 4, 3, 2, 1]),
    ],
)
def test_images_run_in_the_order_in_which_they_came_as_many_as_there_is_room_for(
    num_slots: int, max_batch: int, batches: list[list[int]], under_way: list[int]
) -> None:
    model = CountingRunner(num_slots)
    with two_front_ends(model, max_batch) as submitted:
        pending = [submitted(value % 2, pixels(value)) for value in range(1, 9)]
        model.may_run.set()
        assert [values_of(one) for one in pending] == [[value] for value in range(1, 9)]
        assert submitted.observed() == sorted(map(len, batches))
    assert model.batches == batches
    assert model.under_way == under_way


def test_batches_are_filled_with_the_images_of_others() -> None:
    model = FakeRunner()
    with two_front_ends(model, 4) as submitted:
        groups = [(1, 2, 3), (4, 5, 6), (7, 8)]
        first, second, third = (
            submitted(index % 2, *map(pixels, values), min_score=0.5 if index == 1 else 0.0)
            for index, values in enumerate(groups)
        )
        model.unclear = {5, 7}
        model.may_run.set()
        problems: dict[int, str] = {}
        assert [len(detections) for detections in second.result({}, problems)] == [1, 1, 1]
        assert problems == {1: "NaN"}
        problems.clear()
        assert [len(detections) for detections in third.result({}, problems)] == [2, 2]
        assert problems == {0: "NaN"}
        assert values_of(first) == [1, 2, 3]
    assert model.batches == [[1, 2, 3], [4, 5, 6, 7], [8]]


def test_one_front_end_does_not_spoil_the_batch_of_another() -> None:
    model = FakeRunner()
    with two_front_ends(model, 4) as submitted:
        groups = [(1,), (4, 5, 6), (7, 8)]
        _, second, third = (submitted(index % 2, *map(pixels, values)) for index, values in enumerate(groups))
        model.spoilt[6] = RuntimeError("out of memory")
        model.may_run.set()
        with pytest.raises(RuntimeError, match="out of memory"):
            second.result({}, {})
        assert values_of(third) == [7, 8]
    assert model.batches == [[1], [4, 5, 6, 7], [4, 5, 6], [7], [8]]


def test_images_of_other_sizes_do_not_run_together() -> None:
    model = FakeRunner()
    with two_front_ends(model, 4) as submitted:
        images = [pixels(1), pixels(2), pixels(3, 40, 40), pixels(4)]  # padded to 32x32, and to 64x64
        pending = [submitted(index % 2, image) for index, image in enumerate(images)]
        model.may_run.set()
        assert [values_of(one) for one in pending] == [[1], [2], [3], [4]]
    assert model.batches == [[1], [2, 4], [3]]


def test_the_batches_of_a_front_end_that_is_gone_do_not_run(ends: Ends, runner: FakeRunner) -> None:
    runner.may_run.clear()
    pending = [ends.submitted(1)]
    wait_until(lambda: runner.num_submitted == 1)
    pending += [ends.submitted(value) for value in (2, 3)]
    wait_until(lambda: ends.turns.num_waiting == 2)
    ends.cut()
    wait_until(lambda: ends.peer.is_gone and not ends.peer._segments)
    runner.may_run.set()
    ends.turns.close()
    assert ends.is_lost.wait(SECONDS)
    assert runner.num_submitted == 1
    for one in pending:
        with pytest.raises(
            RuntimeError, match="the model's process: expected an answer, found that it has ended"
        ):
            one.result({}, {})
    with pytest.raises(RuntimeError, match="the model's process: expected it to run"):
        ends.submitted(4)


def test_whether_the_model_s_process_is_well(
    ends: Ends, runner: FakeRunner, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote_runner, "_PING_SECONDS", 0.0)
    monkeypatch.setattr(remote_runner, "SILENCE_SECONDS", 0.2)

    def is_answering() -> bool:
        ends.link.keep_up()
        return ends.link.is_answering

    wait_until(is_answering)
    may_read, take = threading.Event(), ends.peer._take
    ends.peer._take = lambda message: may_read.wait(SECONDS) and take(message)
    wait_until(lambda: not is_answering())
    may_read.set()
    wait_until(is_answering)
    assert ends.link.is_alive
    ends.turns.close()
    wait_until(lambda: is_answering() and not ends.link.is_alive)


def test_nobody_is_told_of_a_failed_model_where_its_process_has_ended(runner: FakeRunner) -> None:
    """The front end ends, before its clients get an answer that blames their images."""
    ends, answered_before = Ends(runner), []
    runner.may_run.clear()
    pending = ends.submitted(1)
    ends.link._on_lost = lambda: (answered_before.append(pending._answer.done()), ends.is_lost.set())
    runner.may_run.clear()
    ends.cut()
    with pytest.raises(RuntimeError, match="it has ended"):
        pending.result({}, {})
    runner.may_run.set()
    ends.close()
    assert answered_before == [False]


def test_how_long_a_front_end_is_silent(ends: Ends, runner: FakeRunner) -> None:
    def grows() -> float:
        wait_until(lambda: ends.peer.silence_s >= 0.2)
        return ends.peer.silence_s

    before = grows()
    ends.link.send(Listening())
    wait_until(lambda: ends.peer.silence_s < before)
    # Not while it is this process that does not listen.
    may_stage, is_staging = threading.Event(), threading.Event()
    runner.stage = lambda image: (is_staging.set(), may_stage.wait(SECONDS)) and image
    pending = ends.submitted(1)
    assert is_staging.wait(SECONDS)
    assert ends.peer.silence_s == 0
    may_stage.set()
    pending.result({}, {})
    before = grows()
    ends.peer.excuse()
    assert ends.peer.silence_s < before


def detections_with(source: MaskSource) -> Detections:
    return Detections(
        boxes=np.array([[10, 20, 400, 500], [5, 5, 60, 70]], np.float32),
        scores=np.array([0.9, 0.8], np.float32),
        labels=np.array([1, 0], np.int32),
        image_size=(900, 1200),
        classes=fakes.CLASSES,
        mask_source=source,
    )


def full_masks() -> FullMasks:
    masks = np.zeros((2, 800, 1100), np.uint8)
    masks[0, 30:500, 20:400] = 1
    masks[0, 100:200, 100:200] = 0
    masks[1, 795:, 1090:] = 1
    return FullMasks(masks, (900, 1200))


def cropped_masks() -> CroppedMasks:
    boxes = np.array([[10, 20, 400, 500], [5, 5, 60, 70]], np.float32)
    return CroppedMasks(np.stack([fakes.disc()] * 2), boxes, (900, 1200), 0.5)


@pytest.mark.parametrize(
    ("make", "kind"), [(full_masks, RunLengthMasks), (cropped_masks, CroppedMasks)], ids=["full", "crop"]
)
def test_masks_are_the_same_however_they_are_sent(
    ends: Ends, runner: FakeRunner, make: Any, kind: type
) -> None:
    expected = detections_with(make())
    runner.run = lambda staged, problems: [detections_with(make()) for _ in staged]
    (sent,) = ends.submitted(1).result({}, {})
    assert isinstance(sent.mask_source, kind)
    assert expected.masks.any(axis=(1, 2)).all()
    np.testing.assert_array_equal(sent.masks, expected.masks)
    assert sent.rle() == expected.rle()
    assert len(sent.polygons()[0]) == len(expected.polygons()[0]) > 0
    for ours, theirs in zip(sent.polygons(), expected.polygons()):
        for one, other in zip(ours, theirs):
            np.testing.assert_array_equal(one, other)
    assert sent.filter(0.85).rle() == expected.filter(0.85).rle()
