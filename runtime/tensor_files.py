"""Inputs from ``.npy`` and ``.npz`` files or made up, outputs as ``.npy`` files, and a table of both."""

import math
import os
import re
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from io import BytesIO
from pathlib import Path
from typing import Optional, Union

import numpy as np
from rich.table import Table
from rich.text import Text

from runtime.console import table_console, tracked
from runtime.contract import Tensor
from runtime.files import whole_file, withdraw
from runtime.interrupts import held
from runtime.npz import read_any
from runtime.reading import limit
from runtime.session import Session

LIMIT_VARIABLE = "MASKRCNN_MAX_INPUT_BYTES"
# Of all inputs that are read, decompressed.
MAX_INPUT_BYTES = 1 << 30
# Of all inputs that are made up: more is a slip.
MAX_BYTES = 8 << 30
_MAX_NAME = 200


def read_inputs(options: Sequence[str]) -> tuple[dict[str, np.ndarray], list[Path]]:
    """Read ``NAME=FILE.npy`` and ``FILE.npz``; return the arrays by name, and the files.

    Raises:
        OSError: a file cannot be read.
        ValueError: not such a file, or a name twice.
    """
    arrays: dict[str, np.ndarray] = {}
    files = []
    left = limit(LIMIT_VARIABLE, MAX_INPUT_BYTES)
    for option in options:
        name, separator, rest = option.partition("=")
        path = Path(rest if separator else option)
        files.append(path)
        found = _loaded(path, left)
        if isinstance(found, np.ndarray) != bool(separator):
            kind = "one array" if isinstance(found, np.ndarray) else "several"
            raise ValueError(f"--input {option}: expected NAME=FILE.npy or FILE.npz, found a file of {kind}")
        named = {name: found} if isinstance(found, np.ndarray) else found
        # A file has strings of fixed lengths, a model of any.
        named = {key: a.astype(object) if a.dtype.kind == "U" else a for key, a in named.items()}
        twice = sorted(arrays.keys() & named.keys())
        if twice:
            raise ValueError(f"--input: expected each input once, found {', '.join(twice)} again in {path}")
        arrays.update(named)
        left -= sum(array.nbytes for array in named.values())
    return arrays, files


def _loaded(path: Path, most: int) -> Union[np.ndarray, dict[str, np.ndarray]]:
    if not path.exists():
        raise FileNotFoundError(f"--input {path}: expected an .npy or .npz file, found no file")
    try:
        return read_any(path, most, f"if that is meant, set {LIMIT_VARIABLE} to as much as all inputs take")
    except ValueError as error:
        text = str(error)
        # Else NumPy's or zipfile's words, of a file that is none.
        reason = text if "expected " in text else f"expected an .npy or .npz file, found none ({text})"
        raise ValueError(f"--input {path}: {reason}") from error


def made_feeds(
    model: Path,
    inputs: Mapping[str, Tensor],
    given: Mapping[str, np.ndarray],
    shapes: Sequence[str],
    seed: Optional[int],
) -> dict[str, np.ndarray]:
    """Return every input: those that are given, and with a seed the others made up.

    Args:
        model: for messages.
        inputs: the model's.
        given: arrays by name.
        shapes: ``NAME=1x3x640x640`` of inputs that are made up; a free dimension that is not named is 1.
        seed: None makes nothing up.

    Raises:
        ValueError: an input is missing or unknown, or a shape does not fit.
    """
    wanted = dict(_shape_option(text) for text in shapes)
    unknown = sorted(wanted.keys() - inputs.keys())
    if unknown:
        raise ValueError(
            f"--shape: expected names of inputs ({', '.join(inputs)}), found {', '.join(unknown)}"
        )
    others = [name for name in given if name not in inputs]
    if others:
        raise ValueError(
            f"--input: expected names of the model's inputs ({', '.join(inputs) or 'none'}), found {', '.join(others)}"
        )
    missing = {name: tensor for name, tensor in inputs.items() if name not in given}
    if missing and seed is None:
        listed = ", ".join(f"{name}: {tensor}" for name, tensor in missing.items())
        raise ValueError(
            f"model {model}: expected every input, found none for {listed}; give --input NAME=FILE.npy, or "
            "--random SEED"
        )
    rng = np.random.default_rng(seed)
    feeds = dict(given)
    for name, tensor in missing.items():
        feeds[name] = _made_up(name, tensor, wanted.get(name), rng)
    return {name: feeds[name] for name in inputs}


def _shape_option(text: str) -> tuple[str, tuple[int, ...]]:
    name, _, sizes = text.partition("=")
    if not name or not re.fullmatch(r"\d+(x\d+)*", sizes):
        raise ValueError(f"--shape: expected NAME=1x3x640x640, found {text[:60]!r}")
    return name, tuple(int(size) for size in sizes.split("x"))


def _made_up(
    name: str, tensor: Tensor, wanted: Optional[tuple[int, ...]], rng: np.random.Generator
) -> np.ndarray:
    shape = wanted if wanted is not None else tuple(1 if size is None else size for size in tensor.shape)
    fits = len(shape) == len(tensor.shape) and all(a in (None, b) for a, b in zip(tensor.shape, shape))
    if not fits:
        raise ValueError(f"--shape {name}: expected one like {tensor}, found {'x'.join(map(str, shape))}")
    dtype = np.dtype(tensor.dtype)
    if dtype.kind not in "fiub":
        raise ValueError(
            f"input {name}: expected numbers to make up, found {tensor}; give --input {name}=FILE.npy"
        )
    if math.prod(shape) * dtype.itemsize > MAX_BYTES:
        raise ValueError(
            f"--shape {name}: expected at most {MAX_BYTES >> 30} GiB, found {'x'.join(map(str, shape))}"
        )
    if dtype.kind == "f":
        return rng.standard_normal(shape, np.float32).astype(dtype)
    # Whole numbers are mostly indices, sizes or pixels.
    return rng.integers(0, 2 if dtype.kind == "b" else 100, shape).astype(dtype)


def timed(
    session: Session, feeds: Mapping[str, np.ndarray], repeat: int
) -> tuple[dict[str, np.ndarray], float]:
    """Run a model; return its outputs, and the median ms of the runs."""
    spent = []
    outputs: dict[str, np.ndarray] = {}
    for _ in tracked(range(repeat), repeat, "running"):
        start = time.perf_counter()
        outputs = session(feeds)
        spent.append((time.perf_counter() - start) * 1e3)
    return outputs, float(np.median(spent))


def print_tensors(feeds: Mapping[str, np.ndarray], outputs: Mapping[str, np.ndarray]) -> None:
    """Print names, dtypes, shapes and ranges."""
    table = Table("", "name", "dtype", "shape")
    for column in ("min", "mean", "max", "not finite"):
        table.add_column(column, justify="right")
    for kind, arrays in (("input", feeds), ("output", outputs)):
        for name, array in arrays.items():
            shape = "x".join(map(str, array.shape)) or "scalar"
            table.add_row(kind, Text(name, overflow="fold"), str(array.dtype), shape, *_range(array))
    table_console().print(table)


def _range(array: np.ndarray) -> list[str]:
    """Return least, mean and largest of the finite numbers, and how many others there are."""
    if array.dtype.kind not in "fiub" or not array.size:
        return ["-"] * 4
    finite = array[np.isfinite(array)] if array.dtype.kind == "f" else array
    if not finite.size:
        return ["-", "-", "-", str(array.size)]
    values = (finite.min(), finite.mean(dtype=np.float64), finite.max())
    return [*(f"{float(value):.6g}" for value in values), str(array.size - finite.size)]


def output_paths(outputs: Mapping[str, Tensor], folder: Path) -> dict[str, Path]:
    """Return an ``.npy`` in the folder for each output: its name, with what a file name cannot have replaced."""
    taken: set[str] = set()
    paths = {}
    for name in outputs:
        stem = re.sub(r"[^\w.\-]", "_", name, flags=re.ASCII).lstrip(".")[:_MAX_NAME] or "output"
        number, candidate = 1, stem
        while candidate.casefold() in taken:
            number += 1
            candidate = f"{stem}_{number}"
        taken.add(candidate.casefold())
        paths[name] = folder / f"{candidate}.npy"
    return paths


def write_outputs(outputs: Mapping[str, np.ndarray], paths: Mapping[str, Path]) -> None:
    """Write each output to its file, whole; a process that is killed meanwhile leaves no two runs' beside each other.

    Raises:
        OSError: one cannot be written; none is.
    """
    with ExitStack() as files:
        for name, path in paths.items():
            buffer, array = BytesIO(), outputs[name]
            np.save(buffer, array.astype(str) if array.dtype == object else array, allow_pickle=False)
            file = files.enter_context(whole_file(path))
            file.write(buffer.getbuffer())
            file.flush()
            os.fsync(file.fileno())
        with held():  # a signal waits: between the two there are neither outputs
            for path in paths.values():
                withdraw(path)
            files.close()
