"""The Open Inference Protocol, version 2, over HTTP: tensors in, tensors out; JSON with binary data behind it or not.

https://github.com/kserve/open-inference-protocol, and Triton's extension for binary data. One input, ``image``: BYTES
of shape [N], an encoded image file each; in JSON they are base64. Outputs have K rows per image, as many as the image
with most detections; the rest is 0, of ``labels`` -1, of ``masks`` the empty string.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Optional, Union

import numpy as np

from runtime.detections import Detections
from runtime.messages import listed, shown
from runtime.metadata import ModelMetadata
from runtime.serving.bodies import NamedImage, from_base64, json_object, too_many
from runtime.serving.refusals import BAD_REQUEST, Refused
from runtime.values import is_number

VERSION = "1"
INPUT = "image"
HEADER_LENGTH = "inference-header-content-length"
_DTYPES = {"INT32": "<i4", "FP32": "<f4"}
_LENGTH_BYTES = 4
_MICROSECONDS = 1e6


@dataclass(frozen=True)
class InferenceRequest:
    """What a client asks for.

    Attributes:
        images: one or more.
        outputs: names, and whether each is to be binary.
        id: of the request, which its answer repeats; None without one.
        min_score: detections below it are left out.
        timeout_s: for the answer; None: the service's.
    """

    images: tuple[NamedImage, ...]
    outputs: Mapping[str, bool]
    id: Optional[str] = None
    min_score: float = 0.0
    timeout_s: Optional[float] = None


def output_tensors(metadata: ModelMetadata) -> dict[str, tuple[str, list[int]]]:
    """Return the data type and the shape of each output; -1 where it varies."""
    tensors = {
        "num_dets": ("INT32", [-1]),
        "boxes": ("FP32", [-1, -1, 4]),
        "scores": ("FP32", [-1, -1]),
        "labels": ("INT32", [-1, -1]),
    }
    if metadata.masks != "none":
        tensors["masks"] = ("BYTES", [-1, -1])
    if metadata.keypoints:
        tensors["keypoints"] = ("FP32", [-1, -1, len(metadata.keypoints), 3])
    return tensors


def described(name: str, metadata: ModelMetadata, platform: str) -> dict[str, Any]:
    """Return a model's metadata as the protocol has it, with the classes beside it."""
    outputs = output_tensors(metadata)
    return {
        "name": name,
        "versions": [VERSION],
        "platform": platform,
        "inputs": [{"name": INPUT, "datatype": "BYTES", "shape": [-1]}],
        "outputs": [{"name": n, "datatype": kind, "shape": shape} for n, (kind, shape) in outputs.items()],
        "parameters": {
            "classes": list(metadata.classes),
            "keypoints": list(metadata.keypoints),
            "max_detections": metadata.max_per_img,
        },
    }


def parsed_request(
    body: bytes, header_length: Optional[str], metadata: ModelMetadata, max_images: int
) -> InferenceRequest:
    """Read an inference request.

    Args:
        body: of the request.
        header_length: the header ``Inference-Header-Content-Length``: so many bytes of the body are JSON, and binary
            data follows; None without it.
        metadata: the model's.
        max_images: that it may have.

    Raises:
        Refused: it is no such request.
    """
    length = _header_length(header_length, len(body))
    document = json_object(body[:length])
    parameters = _object(document, "parameters")
    return InferenceRequest(
        images=_images(document, body[length:], max_images),
        outputs=_outputs(document, parameters, metadata),
        id=_id(document),
        min_score=_number(parameters, "min_score", 0.0, 1.0) or 0.0,
        timeout_s=_timeout(parameters),
    )


def _header_length(text: Optional[str], body_length: int) -> int:
    if text is None:
        return body_length
    if not (text.isascii() and text.isdigit() and len(text) < 19 and int(text) <= body_length):
        raise Refused(
            BAD_REQUEST,
            f"Inference-Header-Content-Length: expected a whole number up to the body's {body_length} bytes, found "
            f"{shown(text)}",
        )
    return int(text)


def _id(document: Mapping[str, Any]) -> Optional[str]:
    value = document.get("id")
    if value is not None and not isinstance(value, str):
        raise Refused(BAD_REQUEST, f"id: expected a string, found {shown(value)}")
    return value


def _object(document: Mapping[str, Any], name: str) -> dict[str, Any]:
    value = document.get(name)
    if value is not None and not isinstance(value, dict):
        raise Refused(BAD_REQUEST, f"{name}: expected an object, found {shown(value)}")
    return value or {}


def _objects(document: Mapping[str, Any], name: str) -> list[dict[str, Any]]:
    value = document.get(name, [])
    if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
        raise Refused(BAD_REQUEST, f"{name}: expected a list of tensors, found {shown(value)}")
    return value


def _number(parameters: Mapping[str, Any], name: str, least: float, most: float) -> Optional[float]:
    value = parameters.get(name)
    if value is not None and not (is_number(value) and least <= value <= most):
        raise Refused(
            BAD_REQUEST,
            f"parameters, {name}: expected a number from {least:g} to {most:g}, found {shown(value)}",
        )
    return value


def _timeout(parameters: Mapping[str, Any]) -> Optional[float]:
    """Return the seconds of Triton's ``timeout``, which is in microseconds; 0 is none."""
    value = _number(parameters, "timeout", 0, 1e15)
    return value / _MICROSECONDS if value else None


def _outputs(
    document: Mapping[str, Any], parameters: Mapping[str, Any], metadata: ModelMetadata
) -> dict[str, bool]:
    known = output_tensors(metadata)
    binary = _flag(parameters, "binary_data_output", default=False)
    asked = _objects(document, "outputs")
    outputs = {}
    for tensor in asked:
        name = tensor.get("name")
        if not isinstance(name, str) or name not in known:
            raise Refused(
                BAD_REQUEST, f"outputs: expected names of {listed(list(known))}, found {shown(name)}"
            )
        outputs[name] = _flag(_object(tensor, "parameters"), "binary_data", default=binary)
    return outputs if asked else dict.fromkeys(known, binary)


def _flag(parameters: Mapping[str, Any], name: str, *, default: bool) -> bool:
    value = parameters.get(name, default)
    if not isinstance(value, bool):
        raise Refused(BAD_REQUEST, f"parameters, {name}: expected true or false, found {shown(value)}")
    return value


def _images(document: Mapping[str, Any], binary: bytes, max_images: int) -> tuple[NamedImage, ...]:
    tensors = _objects(document, "inputs")
    names = [tensor.get("name") for tensor in tensors]
    if names != [INPUT]:
        raise Refused(BAD_REQUEST, f"inputs: expected one tensor, {INPUT!r}, found {shown(names)}")
    (tensor,) = tensors
    number = _num_images(tensor, max_images)
    size = _object(tensor, "parameters").get("binary_data_size")
    if size is None and not binary:
        images = _in_json(tensor)
    elif type(size) is int and size == len(binary):
        images = _elements(binary)
    else:
        raise Refused(
            BAD_REQUEST,
            f"{INPUT}: expected binary_data_size of the bytes behind the JSON, {len(binary)}, found {shown(size)}",
        )
    if len(images) != number:
        raise Refused(BAD_REQUEST, f"{INPUT}: expected {number} elements by its shape, found {len(images)}")
    return tuple(NamedImage(f"{INPUT}[{index}]", data) for index, data in enumerate(images))


def _num_images(tensor: Mapping[str, Any], max_images: int) -> int:
    shape, kind = tensor.get("shape"), tensor.get("datatype")
    if kind != "BYTES":
        raise Refused(
            BAD_REQUEST, f"{INPUT}: expected datatype BYTES, an image file each, found {shown(kind)}"
        )
    is_vector = isinstance(shape, list) and len(shape) == 1 and type(shape[0]) is int
    if not is_vector or shape[0] < 1:
        raise Refused(
            BAD_REQUEST, f"{INPUT}: expected a shape of one number from 1, [N], found {shown(shape)}"
        )
    if shape[0] > max_images:
        raise too_many(shape[0], max_images)
    return shape[0]


def _in_json(tensor: Mapping[str, Any]) -> list[bytes]:
    data = tensor.get("data")
    if not isinstance(data, list):
        raise Refused(BAD_REQUEST, f"{INPUT}: expected data, a list of base64 strings, found {shown(data)}")
    return [from_base64(value, f"{INPUT}[{index}]") for index, value in enumerate(data)]


def _elements(binary: bytes) -> list[bytes]:
    """Return the elements of a BYTES tensor: each has its length before it, little-endian, 4 bytes."""
    elements, at = [], 0
    while at < len(binary):
        end = at + _LENGTH_BYTES
        length = int.from_bytes(binary[at:end], "little")
        if end + length > len(binary):
            raise Refused(
                BAD_REQUEST,
                f"{INPUT}: expected elements with their lengths before them, found one of {length} bytes where "
                f"{max(0, len(binary) - end)} are left",
            )
        elements.append(binary[end : end + length])
        at = end + length
    return elements


def encoded_response(
    request: InferenceRequest, model: str, found: Sequence[Detections]
) -> tuple[bytes, Optional[int]]:
    """Return the body of an answer, and how many bytes of it are JSON where binary data follows.

    Args:
        request: which is answered.
        model: its name.
        found: of each image.
    """
    tensors, blobs = [], []
    for name, is_binary in request.outputs.items():
        array = _array(name, found)
        tensor: dict[str, Any] = {"name": name, "datatype": _datatype(array), "shape": list(array.shape)}
        if is_binary:
            blobs.append(_binary(array))
            tensor["parameters"] = {"binary_data_size": len(blobs[-1])}
        else:
            tensor["data"] = array.ravel().tolist()
        tensors.append(tensor)
    document = {"model_name": model, "model_version": VERSION, "outputs": tensors}
    if request.id is not None:
        document["id"] = request.id
    header = json.dumps(document).encode("ascii")
    return header + b"".join(blobs), len(header) if blobs else None


def _array(name: str, found: Sequence[Detections]) -> np.ndarray:
    if name == "num_dets":
        return np.array([len(detections) for detections in found], np.int32)
    if name == "masks":
        rows = [[json.dumps(rle) for rle in detections.rle()] for detections in found]
        return _padded([np.array(row, object) for row in rows], (), object, "")
    if name == "keypoints":
        points = [detections.keypoints for detections in found]
        return _padded(points, points[0].shape[1:], np.float32, 0)
    values = [getattr(detections, name) for detections in found]
    return _padded(values, values[0].shape[1:], values[0].dtype, -1 if name == "labels" else 0)


def _padded(
    rows: Sequence[np.ndarray], shape: tuple[int, ...], dtype: Any, rest: Union[int, str]
) -> np.ndarray:
    """Return the rows of each image, (n, …), as one array, (N, K, …)."""
    most = max(len(row) for row in rows)
    array = np.full((len(rows), most, *shape), rest, dtype)
    for target, row in zip(array, rows):
        target[: len(row)] = row
    return array


def _datatype(array: np.ndarray) -> str:
    return {"i": "INT32", "f": "FP32", "O": "BYTES"}[array.dtype.kind]


def _binary(array: np.ndarray) -> bytes:
    if array.dtype.kind != "O":
        return array.astype(_DTYPES[_datatype(array)]).tobytes()
    elements = [text.encode("ascii") for text in array.ravel()]
    return b"".join(len(e).to_bytes(_LENGTH_BYTES, "little") + e for e in elements)
