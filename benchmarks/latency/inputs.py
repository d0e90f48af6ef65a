"""The images that every side gets: the dataset's own."""

from collections.abc import Sequence
from itertools import cycle, islice
from pathlib import Path

import cv2
import numpy as np

from benchmarks.latency.cases import Options
from runtime.comparison.average_precision import CocoDataset, read_dataset
from runtime.evaluate import ANNOTATIONS
from runtime.images import read_image

LARGE_SIZE = (1080, 1920)


def dataset_of(options: Options) -> CocoDataset:
    """Read the dataset.

    Raises:
        FileNotFoundError, ValueError: see ``read_dataset``.
    """
    return read_dataset(options.dataset / ANNOTATIONS, options.dataset, options.images)


def first_paths(dataset: CocoDataset, num: int) -> list[Path]:
    """Return the files of the first images; from the beginning again where the dataset has fewer."""
    return list(islice(cycle(image.path for image in dataset.images), num))


def large_image(dataset: CocoDataset) -> np.ndarray:
    """Return the first image of 1080x1920 px, or where there is none the first image, resized to that."""
    images = (read_image(image.path) for image in dataset.images)
    found = next((image for image in images if image.shape[:2] == LARGE_SIZE), None)
    if found is not None:
        return found
    return cv2.resize(read_image(dataset.images[0].path), LARGE_SIZE[::-1])


def whole_batches(dataset: CocoDataset, size: int) -> list[Path]:
    """Return the first files, as many as fill batches of ``size``; one batch at least."""
    return first_paths(dataset, max(1, len(dataset.images) // size) * size)


def split(paths: Sequence[Path], size: int) -> list[Sequence[Path]]:
    """Return the files in batches; the last may be smaller."""
    return [paths[start : start + size] for start in range(0, len(paths), size)]
