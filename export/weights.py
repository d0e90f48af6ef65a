"""Weights of more than 2 GB, which no protobuf message holds: kept in files, and written beside the ONNX as its data.

While the graph is worked on, each of them is an input of the graph.
"""

import hashlib
import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import onnx
from onnx.external_data_helper import (
    ExternalDataInfo,
    load_external_data_for_tensor,
    set_external_data,
    uses_external_data,
)
from torch import nn

# Of all weights together; the graph around them takes some of the 2 GB as well.
MOST_BYTES = 1_900_000_000
DATA_SUFFIX = ".data"
# Where a tensor begins in the data file: ONNX asks for this, so that it can be mapped into memory.
ALIGNMENT = 4096
# Smaller tensors go into the graph, where constants are folded.
LEAST_BYTES = 1 << 16
_CHUNK = 1 << 24


@dataclass(frozen=True)
class DetachedWeights:
    """Weights that are not in the graph.

    Attributes:
        folder: where their files are.
        tensors: what says in which file, and where in it, each lies.
    """

    folder: Path
    tensors: tuple[onnx.TensorProto, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.tensors)

    def write(self, file: IO[bytes]) -> "list[onnx.TensorProto]":
        """Copy the weights into one file; return what says where in it they are, with a checksum of each.

        The checksums make the ONNX another file where the weights are others.
        """
        placed = []
        for tensor in self.tensors:
            source = ExternalDataInfo(tensor)
            file.write(b"\0" * (-file.tell() % ALIGNMENT))
            offset, digest = file.tell(), hashlib.sha1()
            with (self.folder / source.location).open("rb") as part:
                part.seek(source.offset or 0)
                left = source.length
                while left is None or left > 0:
                    chunk = part.read(_CHUNK if left is None else min(_CHUNK, left))
                    if not chunk:
                        break
                    file.write(chunk)
                    digest.update(chunk)
                    left = None if left is None else left - len(chunk)
            copy = onnx.TensorProto()
            copy.CopyFrom(tensor)
            del copy.external_data[:]
            copy.raw_data = b"-"  # set_external_data insists on some
            set_external_data(
                copy, location="-", offset=offset, length=file.tell() - offset, checksum=digest.hexdigest()
            )
            copy.ClearField("raw_data")
            placed.append(copy)
        return placed


def num_bytes(model: nn.Module) -> int:
    """Return the bytes of a model's weights."""
    tensors = [*model.parameters(), *model.buffers()]
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def detach(model: onnx.ModelProto, folder: Path) -> DetachedWeights:
    """Make inputs of the large weights that lie in files of a folder, and read the other tensors there.

    The model is changed.
    """
    for node in model.graph.node:
        for attribute in node.attribute:
            if attribute.HasField("t"):
                _read(attribute.t, folder)
    tensors, kept = [], []
    for tensor in model.graph.initializer:
        if _num_bytes(tensor) < LEAST_BYTES:
            _read(tensor, folder)
        (tensors if uses_external_data(tensor) else kept).append(tensor)
    del model.graph.initializer[:]
    model.graph.initializer.extend(kept)
    model.graph.input.extend(
        onnx.helper.make_tensor_value_info(t.name, t.data_type, list(t.dims)) for t in tensors
    )
    return DetachedWeights(folder, tuple(tensors))


def _read(tensor: onnx.TensorProto, folder: Path) -> None:
    if uses_external_data(tensor):
        load_external_data_for_tensor(tensor, str(folder))
        tensor.data_location = onnx.TensorProto.DEFAULT
        del tensor.external_data[:]


def _num_bytes(tensor: onnx.TensorProto) -> int:
    return math.prod(tensor.dims) * onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize


def attached(model: onnx.ModelProto, tensors: Iterable[onnx.TensorProto], location: str) -> onnx.ModelProto:
    """Return a copy of the graph whose weights are in a file of that name beside it."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    names = set()
    for tensor in tensors:
        named = copy.graph.initializer.add()
        named.CopyFrom(tensor)
        for entry in named.external_data:
            if entry.key == "location":
                entry.value = location
        names.add(tensor.name)
    inputs = [value for value in copy.graph.input if value.name not in names]
    del copy.graph.input[:]
    copy.graph.input.extend(inputs)
    return copy


def data_path(output: Path) -> Path:
    """Return where the weights of an ONNX are that does not hold them itself."""
    return output.with_name(output.name + DATA_SUFFIX)
