"""The service on Ray Serve, for ``serve run`` and from Python; ``python -m runtime.serve --ray`` is the command.

``serve run runtime.ray_serve:build model=model.onnx max_replicas=4`` on a cluster, in Python
``serve.run(deployment("model.onnx"))``. Requests are those of ``runtime.serve``; besides, ``POST /`` with the bytes of
an image file is answered as a line of ``detections.jsonl``.
"""

from pathlib import Path
from typing import Any, Union

from runtime.contract import check_model_file
from runtime.ranges import MAX_BATCH, checked_count
from runtime.serving.options import ServingOptions
from runtime.serving.replicas import ModelFile, Replicas, application


def deployment(
    model: Union[str, Path],
    *,
    backend: str = "auto",
    batch_size: int = 8,
    batch_wait_s: float = 0.01,
    min_replicas: int = 1,
    max_replicas: int = 1,
    max_ongoing_requests: int = 32,
    max_queued_requests: int = 128,
    cpus: float = 1,
    gpus: float = 0,
    surge: bool = False,
    min_score: float = 0.05,
    name: str = "maskrcnn",
    **options: Any,
) -> Any:
    """Return an application for ``ray.serve.run``.

    Args:
        model: path of the model, on every node.
        backend: of ``Detector``.
        batch_size: most images that run at once in a replica.
        batch_wait_s: how long the first of a batch waits for others.
        min_replicas, max_replicas: where they differ, Ray scales by the number of requests under way.
        max_ongoing_requests: of a replica: those that run, and wait for the next batch.
        max_queued_requests: of each proxy, beyond those; a request more is answered 429.
        cpus, gpus: of each replica; a part of a GPU lets several share it.
        surge: whether, in an update, a replica's successor runs before it ends; there has to be room for it.
        min_score: detections below it are left out of the answers to ``POST /``.
        name: of the deployment, and of the model in requests.
        options: other keywords of ``Detector``.

    Raises:
        FileNotFoundError: no such model.
        ValueError: numbers that contradict each other.
        RuntimeError: Ray Serve is not installed.
    """
    path = str(check_model_file(model).absolute())
    checked_count("batch_size", batch_size, MAX_BATCH)
    return application(
        {name: ModelFile(path, backend, options)},
        ServingOptions(max_batch=batch_size, max_delay_ms=1e3 * batch_wait_s, max_queue=max_queued_requests),
        Replicas(min_replicas, max_replicas, cpus, gpus, surge, max_ongoing_requests),
        name=name,
        line_score=min_score,
    )


def build(args: dict[str, str]) -> Any:
    """Return an application of the words behind ``serve run runtime.ray_serve:build``: ``model=m.onnx gpus=0.5``.

    Raises:
        ValueError: a word is none of ``deployment``'s, or its value no number.
    """
    kinds: dict[str, Any] = {
        **dict.fromkeys(("model", "backend", "name", "device", "precision", "plugins"), str),
        **dict.fromkeys(("batch_size", "min_replicas", "max_replicas", "threads", "streams"), int),
        **dict.fromkeys(("max_ongoing_requests", "max_queued_requests", "surge"), int),
        **dict.fromkeys(("batch_wait_s", "cpus", "gpus", "min_score"), float),
    }
    if "model" not in args:
        raise ValueError(
            "model: expected model=FILE, found none; serve run runtime.ray_serve:build model=m.onnx"
        )
    values = {}
    for word, text in args.items():
        if word not in kinds:
            raise ValueError(f"{word}: expected one of {', '.join(kinds)}, found another; leave it out")
        try:
            values[word] = kinds[word](text)
        except ValueError as error:
            raise ValueError(f"{word}: expected a number, found {text!r}") from error
    return deployment(**values)
