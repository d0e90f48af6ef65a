"""The queue of a model, without HTTP."""

import gc
import threading
import time
import weakref
from collections.abc import Iterator
from concurrent.futures import wait
from contextlib import contextmanager
from typing import Any

import pytest

from runtime.serving.batching import Batcher, Job
from runtime.serving.options import ServingOptions
from runtime.serving.refusals import Refused
from tests.runtime import fakes
from tests.runtime.serving.servers import SECONDS, FakeRunner, png, wait_until

ANY_SIZE = fakes.metadata(size=None, steps=(), masks="none")


def job(value: int, seconds: float = SECONDS, **more: Any) -> Job:
    return Job(png(value), f"image {value}", time.monotonic() + seconds, **more)


@contextmanager
def batcher(runner: FakeRunner, metadata: Any = ANY_SIZE, **options: Any) -> Iterator[Batcher]:
    with Batcher(runner, metadata, ServingOptions(**options)) as queue:
        try:
            yield queue
        finally:
            runner.may_run.set()


def values(jobs: list[Job]) -> list[float]:
    return [float(j.future.result(SECONDS).detections.boxes[0, 0]) for j in jobs]


def error(one: Job) -> Refused:
    problem = one.future.exception(SECONDS)
    assert isinstance(problem, Refused)
    return problem


def held_up(runner: FakeRunner, queue: Batcher) -> Job:
    """Have one image in the model, which does not return."""
    runner.may_run.clear()
    first = job(255)
    queue.submit([first])
    wait_until(first.future.running)
    return first


def test_what_comes_meanwhile_runs_together_and_each_gets_its_own() -> None:
    runner = FakeRunner()
    with batcher(runner, max_batch=4, max_delay_ms=0) as queue:
        first = held_up(runner, queue)
        jobs = [job(value) for value in range(10)]
        for one in jobs:
            queue.submit([one])
        wait_until(lambda: len(queue._ready) == 8)  # two batches are decoded ahead, no more
        assert queue.num_queued == 10
        runner.may_run.set()
        assert values([first, *jobs]) == [255, *range(10)]
    sizes = [len(batch) for batch in runner.batches]
    assert sizes[:3] == [1, 4, 4]
    assert sum(sizes) == 11


def test_the_first_waits_for_others_until_the_batch_is_full_or_the_delay_is_over() -> None:
    runner = FakeRunner()
    with batcher(runner, max_batch=3, max_delay_ms=300) as queue:
        jobs = [job(value) for value in range(3)]
        start = time.monotonic()
        for one in jobs:
            queue.submit([one])
        wait([one.future for one in jobs], SECONDS)
        full = time.monotonic() - start
        alone = job(9)
        start = time.monotonic()
        queue.submit([alone])
        alone.future.result(SECONDS)
        waited = time.monotonic() - start
    assert [sorted(batch) for batch in runner.batches] == [[0, 1, 2], [9]]
    assert full < 0.3 <= waited


def test_a_batch_is_no_larger_than_the_model_takes() -> None:
    runner = FakeRunner(largest_batch=2)
    with batcher(runner, max_batch=8, max_delay_ms=0) as queue:
        first = held_up(runner, queue)
        jobs = [job(value) for value in range(4)]
        queue.submit(jobs)
        wait_until(lambda: len(queue._ready) == 4)
        runner.may_run.set()
        values([first, *jobs])
    assert max(map(len, runner.batches)) == 2


def test_batches_are_under_way_side_by_side() -> None:
    runner = FakeRunner(num_slots=2)
    with batcher(runner, max_batch=1, max_delay_ms=0) as queue:
        first = held_up(runner, queue)
        second = job(1)
        queue.submit([second])
        runner.may_run.set()
        assert values([first, second]) == [255, 1]


def test_images_of_different_size_do_not_pad_each_other() -> None:
    runner = FakeRunner()
    with batcher(runner, max_batch=4, max_delay_ms=0) as queue:
        held_up(runner, queue)
        small = [Job(png(v), "small", time.monotonic() + SECONDS) for v in (1, 3)]
        large = [Job(png(v, 100, 60), "large", time.monotonic() + SECONDS) for v in (2, 4)]
        for pair in zip(small, large):
            queue.submit(pair)
        wait_until(lambda: len(queue._ready) == 4)
        runner.may_run.set()
        values([*small, *large])
    assert sorted(map(sorted, runner.batches[1:])) == [[1, 3], [2, 4]]


def test_images_of_different_size_run_together_where_the_size_is_fixed() -> None:
    runner = FakeRunner()
    with batcher(runner, fakes.metadata(), max_batch=4, max_delay_ms=0) as queue:
        held_up(runner, queue)
        jobs = [
            Job(png(1), "", time.monotonic() + SECONDS),
            Job(png(2, 50, 60), "", time.monotonic() + SECONDS),
        ]
        queue.submit(jobs)
        wait_until(lambda: len(queue._ready) == 2)
        runner.may_run.set()
        values(jobs)
    assert sorted(runner.batches[1]) == [1, 2]


def test_a_full_queue_refuses_at_once_all_of_a_request_or_none() -> None:
    runner = FakeRunner()
    with batcher(runner, max_batch=1, max_queue=3) as queue:
        first = held_up(runner, queue)
        waiting = [job(1), job(2)]
        queue.submit(waiting)
        start = time.monotonic()
        with pytest.raises(Refused, match="room in the queue for 2 images, found 2 of 3 waiting") as refused:
            queue.submit([job(3), job(4)])
        assert time.monotonic() - start < 1
        assert refused.value.kind.status == 429
        assert refused.value.retry_after_s >= 1
        last = job(5)
        queue.submit([last])
        runner.may_run.set()
        assert values([first, *waiting, last]) == [255, 1, 2, 5]
    assert [3] not in runner.batches


def test_what_has_expired_or_is_not_waited_for_does_not_run() -> None:
    runner = FakeRunner()
    with batcher(runner, max_batch=2, max_delay_ms=0) as queue:
        first = held_up(runner, queue)
        expired, gone, good = job(1, seconds=0.05), job(2), job(3)
        queue.submit([expired, gone, good])
        assert gone.future.cancel()
        wait_until(lambda: queue.num_queued == 2)  # there is room again
        time.sleep(0.06)
        runner.may_run.set()
        assert error(expired).kind.status == 504
        assert values([first, good]) == [255, 3]
    assert runner.batches == [[255], [3]]


def test_one_image_does_not_spoil_the_others_of_its_batch() -> None:
    runner = FakeRunner()
    runner.spoilt = {
        2: RuntimeError("out of memory"),
        3: ValueError("too large for the model"),
        4: KeyError("x"),
    }
    runner.unclear = {5}
    with batcher(runner, max_batch=8, max_delay_ms=0) as queue:
        held_up(runner, queue)
        jobs = [job(value) for value in range(1, 7)]
        queue.submit(jobs)
        wait_until(lambda: len(queue._ready) == 6)
        runner.may_run.set()
        one, spoilt, unfit, odd, unclear, six = jobs
        assert values([one, six]) == [1, 6]
        assert error(spoilt).kind.status == 500
        assert "image 2: the model failed on it: out of memory" in str(error(spoilt))
        assert error(unfit).kind.status == 400
        assert error(odd).kind.status == 500
        assert error(unclear).kind.status == 500
        assert "not a result: NaN" in str(error(unclear))
        later = job(7)
        queue.submit([later])
        assert values([later]) == [7]  # the worker lives


@pytest.mark.parametrize(
    ("data", "status", "reason"),
    [
        (
            b"",
            400,
            "image: expected an image file (JPEG, PNG, WebP, BMP, TIFF, GIF or netpbm), found no bytes",
        ),
        (b"GIF?", 400, "found 4 bytes that begin with b'GIF?'"),
        (png(1)[:40], 400, "cannot decode"),
        (png(1, 30, 40), 413, "expected an image of up to 1000 pixels, found 30x40"),
    ],
)
def test_a_bad_image_says_why(data: bytes, status: int, reason: str) -> None:
    runner = FakeRunner()
    with batcher(runner, max_pixels=1000) as queue:
        bad = Job(data, "image", time.monotonic() + SECONDS)
        queue.submit([bad])
        assert reason in str(error(bad))
        assert error(bad).kind.status == status
    assert not runner.batches


def test_min_score_is_each_image_s_own() -> None:
    runner = FakeRunner()
    with batcher(runner, max_batch=2, max_delay_ms=1000) as queue:
        jobs = [job(1, min_score=0.5), job(2, min_score=0.1, keep_image=True)]
        queue.submit(jobs)
        strict, lax = (one.future.result(SECONDS) for one in jobs)
    assert (len(strict.detections), len(lax.detections)) == (1, 2)
    assert strict.image is None
    assert lax.image.shape == (4, 6, 3)


def test_closing_answers_what_was_taken_and_takes_no_more() -> None:
    runner = FakeRunner()
    queue = Batcher(runner, ANY_SIZE, ServingOptions(max_batch=2, max_delay_ms=60_000))
    held_up_job = job(1)
    queue.submit([held_up_job])
    start = time.monotonic()
    queue.close()  # does not wait for the delay
    assert time.monotonic() - start < 10
    assert values([held_up_job]) == [1]
    assert not queue.is_alive
    with pytest.raises(Refused, match="the service is ending"):
        queue.submit([job(2)])


def test_closing_waits_for_no_image_that_nobody_waits_for() -> None:
    runner = FakeRunner()
    queue = Batcher(runner, ANY_SIZE, ServingOptions(max_batch=1, max_delay_ms=0))
    held_up(runner, queue)
    jobs = [job(value) for value in range(8)]
    queue.submit(jobs)
    closing = threading.Thread(target=queue.close)
    closing.start()
    for one in jobs:
        one.future.cancel()
    runner.may_run.set()
    closing.join(SECONDS)
    assert not closing.is_alive()


def test_a_place_is_kept_until_its_image_is_queued_or_given_up() -> None:
    runner = FakeRunner()
    with batcher(runner, max_queue=1, max_delay_ms=0) as queue:
        with queue.place() as place:
            assert queue.num_queued == 1
            with pytest.raises(Refused, match="found 1 of 1 waiting"):
                queue.check_room()
            first = job(1)
            queue.submit([first], place)  # in the place that was kept
            first.future.result(SECONDS)
        assert queue.num_queued == 0
        with pytest.raises(ValueError, match="away"), queue.place():
            raise ValueError("away")
        assert queue.num_queued == 0
        with queue.place():
            pass
        queue.check_room()


class Staged:
    """An image as a runner keeps it; can be referred to weakly."""

    def __init__(self, image: Any) -> None:
        self.image = image


class KeepingRunner(FakeRunner):
    """Stages images as objects whose end can be seen."""

    def __init__(self) -> None:
        super().__init__()
        self.staged: list[weakref.ref] = []

    def stage(self, image: Any) -> Any:
        staged = Staged(image)
        self.staged.append(weakref.ref(staged))
        return staged

    def submit(self, staged: Any, min_score: float = 0.0, **options: Any) -> Any:
        return super().submit([one.image for one in staged], min_score, **options)


def test_a_staged_image_is_released_with_its_answer_not_by_the_garbage_collector() -> None:
    runner = KeepingRunner()
    runner.spoilt[3] = RuntimeError("out of memory")
    with batcher(runner, max_batch=4, max_delay_ms=0) as queue:
        first = held_up(runner, queue)
        jobs = [job(value) for value in (1, 2, 3, 4)]
        gc.disable()
        try:
            for one in jobs:
                queue.submit([one])
            wait_until(lambda: len(queue._ready) == 4)
            jobs[3].future.cancel()
            runner.may_run.set()
            assert values([first, *jobs[:2]]) == [255, 1, 2]
            assert "out of memory" in error(jobs[2]).reason
            assert len(runner.staged) == 5
            wait_until(lambda: not any(staged() for staged in runner.staged))
        finally:
            gc.enable()
