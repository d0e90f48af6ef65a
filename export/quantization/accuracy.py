"""The fewest layers to leave out so that the average precision stays."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Optional

import onnx

from runtime.comparison.average_precision import CocoDataset, read_dataset
from runtime.comparison.detections import Progress, no_progress
from runtime.comparison.evaluation import Evaluation, evaluate_artifact
from runtime.comparison.sources import open_artifact
from runtime.files import working_folder
from runtime.graphs.load import save_model

REASON = "left out to keep the average precision"


@dataclass(frozen=True)
class Trial:
    """What a model achieves with its worst layers left out.

    Attributes:
        num_left_out: of the layers, the worst first.
        drops: of the float model's AP, ``box`` and with masks ``mask``; below 0 where INT8 is better.
        within: whether none is more than allowed.
    """

    num_left_out: int
    drops: dict[str, float]
    within: bool


@dataclass(frozen=True)
class AccuracyRequest:
    """What has to be kept.

    Attributes:
        dataset: annotated images, none of them among those that ranges are found on.
        ap_drop: most that box and mask AP may lose, of 1.
        batch: images at once.
        threads: CPU threads of onnxruntime; None lets it choose.
        progress: shows how far it is.
    """

    dataset: CocoDataset
    ap_drop: float
    batch: int = 1
    threads: Optional[int] = None
    progress: Progress = no_progress


def fewest_left_out(
    path: Path,
    num_layers: int,
    build: Callable[[int], onnx.ModelProto],
    request: AccuracyRequest,
) -> tuple[int, tuple[Trial, ...]]:
    """Return how many of the worst layers to leave out, and every trial in order.

    None, then 1, 2, 4 and so on until the drop is within what is allowed, then the fewest by halves.

    Args:
        path: of the float model.
        num_layers: how many can be left out; the last try leaves one quantized.
        build: returns the model with so many of the worst layers left out.
        request: see there.

    Raises:
        OSError, ValueError, RuntimeError: see ``runtime.comparison.evaluation.evaluate_artifact``; or no such model is
            within what is allowed, or the float model has no AP on these images.
    """
    expected = _evaluated(path, request)
    _check(expected, request)
    trials: list[Trial] = []

    def within(count: int) -> bool:
        trials.append(_trial(count, build(count), expected, request))
        return trials[-1].within

    fails, count = -1, 0
    while not within(count):
        if count >= num_layers - 1:
            raise ValueError(
                f"--ap-drop {request.ap_drop:g}: expected a model within it, found none; with {count} of "
                f"{num_layers} layers left out the drop is {_said(trials[-1])}: allow more, or give other calibration "
                "images"
            )
        fails, count = count, min(max(1, 2 * count), num_layers - 1)
    while count - fails > 1:
        middle = (fails + count) // 2
        fails, count = (fails, middle) if within(middle) else (middle, count)
    return count, tuple(trials)


def _trial(count: int, model: onnx.ModelProto, expected: Evaluation, request: AccuracyRequest) -> Trial:
    with working_folder() as folder:
        path = folder / f"without the worst {count}.onnx"
        save_model(model, path)
        found = _evaluated(path, request)
    changes = found.minus(expected)
    drops = {kind: -(values["AP"] or 0.0) for kind, values in changes.items()}
    return Trial(count, drops, not found.problems and max(drops.values()) <= request.ap_drop)


def _evaluated(path: Path, request: AccuracyRequest) -> Evaluation:
    with open_artifact(path, "onnxruntime", request.batch, threads=request.threads) as artifact:
        return evaluate_artifact(artifact, request.dataset, request.progress)


def _check(expected: Evaluation, request: AccuracyRequest) -> None:
    found = [kind for kind, values in expected.average_precision.items() if values["AP"]]
    if not found:
        raise ValueError(
            f"--dataset {request.dataset.path}: expected images on which the float model has an average precision "
            "above 0, found none: nothing can be kept; give annotated images of what it was trained for"
        )


def _said(trial: Trial) -> str:
    return ", ".join(f"{kind} {drop:.4f}" for kind, drop in trial.drops.items())


def dataset_files(path: Path) -> tuple[Path, Path]:
    """Return annotations and images' folder of ``--dataset``: a JSON file beside its images, or their folder."""
    return (path / "annotations.json", path) if path.is_dir() else (path, path.parent)


def ap_dataset(path: Path, limit: Optional[int]) -> CocoDataset:
    """Read the data set of ``--dataset``; see ``dataset_files`` and ``read_dataset``.

    Raises:
        OSError, ValueError: see ``read_dataset``. Where images are missing it says what helps here, as ``--images``
            are those for calibration.
    """
    annotations, folder = dataset_files(path)
    return read_dataset(
        annotations,
        folder,
        limit,
        remedy=f"--dataset takes a file of annotations that lies beside its images: copy or link {annotations.name} "
        "into their folder, or write their paths, absolute or from there, into file_name",
    )


def shared_images(dataset: CocoDataset, images: Sequence[Path]) -> list[Path]:
    """Return the images that are in both."""
    evaluated = {image.path.resolve() for image in dataset.images}
    return [path for path in images if path.resolve() in evaluated]
