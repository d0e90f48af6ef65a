"""The Open Inference Protocol: with Triton's own client, and by hand."""

import base64
import json
import struct
from typing import Any

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from examples import IMAGES_DIR
from runtime import Detections, Detector
from runtime.images import read_image
from runtime.serving.open_inference import InferenceRequest, encoded_response
from tests.runtime import fakes
from tests.runtime.serving.servers import Served

PATHS = (IMAGES_DIR / "landscape.jpg", IMAGES_DIR / "square.jpg")
FILES = [path.read_bytes() for path in PATHS]
INFER = "/v2/models/fake/infer"
TEXT = [base64.b64encode(data).decode() for data in FILES]


@pytest.fixture(scope="module")
def expected(detectors: dict[str, Detector]) -> list[Detections]:
    return [detectors["fake"]([read_image(path)])[0] for path in PATHS]


@pytest.fixture(scope="module")
def triton(service: Served) -> Any:
    client = pytest.importorskip("tritonclient.http", reason="tritonclient[http] is not installed")
    with client.InferenceServerClient(service.url.partition("//")[2]) as connected:
        yield connected


def test_triton_s_client_sees_the_server(triton: Any) -> None:
    assert triton.is_server_live()
    assert triton.is_server_ready()
    assert triton.is_model_ready("fake")
    assert triton.is_model_ready("fake", "1")
    assert not triton.is_model_ready("none")
    assert "binary_tensor_data" in triton.get_server_metadata()["extensions"]
    facts = triton.get_model_metadata("fake")
    assert facts["inputs"] == [{"name": "image", "datatype": "BYTES", "shape": [-1]}]
    assert [output["name"] for output in facts["outputs"]] == [
        "num_dets",
        "boxes",
        "scores",
        "labels",
        "masks",
    ]
    assert facts["parameters"]["classes"] == list(fakes.CLASSES)


@pytest.mark.parametrize("binary_in", [True, False])
@pytest.mark.parametrize("binary_out", [None, True, False])
def test_triton_s_client_gets_what_the_detector_finds(
    triton: Any, expected: list[Detections], binary_in: bool, binary_out: Any
) -> None:
    import tritonclient.http as http

    elements = FILES if binary_in else [text.encode() for text in TEXT]
    tensor = http.InferInput("image", [2], "BYTES")
    tensor.set_data_from_numpy(np.array(elements, object), binary_data=binary_in)
    names = ("masks", "num_dets", "boxes", "scores", "labels")
    outputs = None  # all of them, in binary
    if binary_out is not None:
        outputs = [http.InferRequestedOutput(name, binary_data=binary_out) for name in names]
    answer = triton.infer("fake", [tensor], outputs=outputs, request_id="7")
    found = {name: answer.as_numpy(name) for name in names}
    assert answer.get_response()["id"] == "7"
    assert found["num_dets"].dtype == found["labels"].dtype == np.int32
    assert found["num_dets"].tolist() == [3, 3]
    for index, one in enumerate(expected):
        assert np.array_equal(found["boxes"][index], one.boxes)
        assert np.array_equal(found["scores"][index], one.scores)
        assert np.array_equal(found["labels"][index], one.labels)
        for rle, mask in zip(found["masks"][index], one.masks):
            assert np.array_equal(coco_mask.decode(json.loads(rle)), mask)


def test_triton_s_client_gets_errors(triton: Any) -> None:
    import tritonclient.http as http
    from tritonclient.utils import InferenceServerException

    tensor = http.InferInput("image", [1], "BYTES")
    tensor.set_data_from_numpy(np.array([b"no image"], object))
    with pytest.raises(InferenceServerException, match="expected an image file"):
        triton.infer("fake", [tensor])
    with pytest.raises(InferenceServerException, match="model: expected one of fake, boxes, found 'none'"):
        triton.infer("none", [tensor])
    with pytest.raises(InferenceServerException, match="version: expected 1, found '2'"):
        triton.infer("fake", [tensor], model_version="2")


def test_the_server_by_hand(service: Served) -> None:
    with service.client() as client:
        assert client.get("/v2").json()["name"] == "maskrcnn-serve"
        assert client.get("/v2/health/live").status_code == 200
        assert client.get("/v2/health/ready").status_code == 200
        assert client.get("/v2/models").json() == {"models": ["fake", "boxes"]}
        assert client.get("/v2/models/boxes/versions/1").json()["name"] == "boxes"
        assert client.get("/v2/models/boxes/versions/1/ready").status_code == 200
        assert client.get("/v2/models/boxes/versions/2/ready").status_code == 404
        assert client.get("/v2/models/x").json() == {"error": "model: expected one of fake, boxes, found 'x'"}


def document(**changes: Any) -> dict[str, Any]:
    tensor = {"name": "image", "datatype": "BYTES", "shape": [1], "data": TEXT[1:]}
    return {"inputs": [{**tensor, **changes.pop("tensor", {})}], **changes}


def test_json_by_hand(service: Served, expected: list[Detections]) -> None:
    with service.client() as client:
        asked = document(id="a", outputs=[{"name": "scores"}], parameters={"min_score": 0.4})
        answer = client.post("/v2/models/fake/versions/1/infer", json=asked).json()
    assert (answer["model_name"], answer["model_version"]) == ("fake", "1")
    assert answer["id"] == "a"
    (scores,) = answer["outputs"]
    assert scores == {
        "name": "scores",
        "datatype": "FP32",
        "shape": [1, 2],
        "data": expected[1].scores[:2].tolist(),
    }


def test_binary_by_hand(service: Served, expected: list[Detections]) -> None:
    binary = b"".join(struct.pack("<I", len(data)) + data for data in FILES)
    tensor = {"data": None, "shape": [2], "parameters": {"binary_data_size": len(binary)}}
    outputs = [{"name": "labels"}, {"name": "boxes", "parameters": {"binary_data": False}}]
    header = json.dumps(
        document(tensor=tensor, outputs=outputs, parameters={"binary_data_output": True})
    ).encode()
    with service.client() as client:
        answer = client.post(
            INFER, content=header + binary, headers={"Inference-Header-Content-Length": str(len(header))}
        )
    length = int(answer.headers["inference-header-content-length"])
    labels, boxes = json.loads(answer.content[:length])["outputs"]
    assert labels["parameters"] == {"binary_data_size": 24}
    assert struct.unpack("<6i", answer.content[length:]) == (*expected[0].labels, *expected[1].labels)
    assert boxes["shape"] == [2, 3, 4]
    assert boxes["data"] == [v for one in expected for v in one.boxes.ravel().tolist()]


def test_fewer_detections_are_filled_up() -> None:
    """Two images with one detection and with none, of a model with key points."""
    points = {"keypoints": np.array([[[1, 2, 0.5]]], np.float32), "keypoint_names": ("nose",)}
    one = Detections(
        np.array([[1, 2, 3, 4]], np.float32),
        np.array([0.5], np.float32),
        np.array([2], np.int32),
        (5, 6),
        ("a",) * 3,
        **points,
    )
    none = one.select(np.zeros(1, bool))
    outputs = dict.fromkeys(("num_dets", "boxes", "scores", "labels", "keypoints"), False)
    body, length = encoded_response(InferenceRequest((), outputs), "m", [none, one])
    assert length is None
    found = {tensor["name"]: (tensor["shape"], tensor["data"]) for tensor in json.loads(body)["outputs"]}
    assert found == {
        "num_dets": ([2], [0, 1]),
        "boxes": ([2, 1, 4], [0, 0, 0, 0, 1, 2, 3, 4]),
        "scores": ([2, 1], [0, 0.5]),
        "labels": ([2, 1], [-1, 2]),
        "keypoints": ([2, 1, 1, 3], [0, 0, 0, 1, 2, 0.5]),
    }
    body, _ = encoded_response(InferenceRequest((), outputs), "m", [none, none])
    assert [tensor["shape"] for tensor in json.loads(body)["outputs"]] == [
        [2],
        [2, 0, 4],
        [2, 0],
        [2, 0],
        [2, 0, 1, 3],
    ]


REFUSED: dict[str, tuple[Any, str]] = {
    "no inputs": ({}, "inputs: expected one tensor, 'image', found []"),
    "inputs": ({"inputs": 3}, "inputs: expected a list of tensors, found 3"),
    "two inputs": ({"inputs": document()["inputs"] * 2}, "found ['image', 'image']"),
    "another name": (document(tensor={"name": "x"}), "expected one tensor, 'image', found ['x']"),
    "another type": (document(tensor={"datatype": "UINT8"}), "expected datatype BYTES"),
    "no shape": (document(tensor={"shape": None}), "a shape of one number from 1, [N], found None"),
    "an empty shape": (document(tensor={"shape": [0], "data": []}), "a shape of one number from 1"),
    "a shape of truth": (document(tensor={"shape": [True]}), "a shape of one number from 1"),
    "another number": (document(tensor={"shape": [2]}), "expected 2 elements by its shape, found 1"),
    "no data": (document(tensor={"data": None}), "expected data, a list of base64 strings"),
    "numbers": (document(tensor={"data": [1]}), "image[0]: expected an image file in base64, found 1"),
    "binary that is none": (
        document(tensor={"parameters": {"binary_data_size": 4}}),
        "expected binary_data_size of the",
    ),
    "an output": (document(outputs=[{"name": "x"}]), "outputs: expected names of num_dets, boxes"),
    "outputs": (document(outputs={"name": "boxes"}), "outputs: expected a list of tensors"),
    "an odd output": (document(outputs=[{"name": {}}]), "outputs: expected names of"),
    "parameters": (document(parameters=[]), "parameters: expected an object, found []"),
    "a flag": (
        document(parameters={"binary_data_output": 1}),
        "binary_data_output: expected true or false, found 1",
    ),
    "a score": (
        document(parameters={"min_score": "1"}),
        "min_score: expected a number from 0 to 1, found '1'",
    ),
    "a time": (document(parameters={"timeout": -1}), "timeout: expected a number from 0"),
    "an id": (document(id=3), "id: expected a string, found 3"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_refused_says_why(service: Served, case: str) -> None:
    asked, reason = REFUSED[case]
    with service.client() as client:
        answer = client.post(INFER, json=asked)
    assert answer.status_code == 400, answer.text
    assert set(answer.json()) == {"error"}
    assert reason in answer.json()["error"]


@pytest.mark.parametrize("length", ["-1", "x", "1e3", "9" * 30, "100000000", "²"])
def test_a_header_length_that_is_none(service: Served, length: str) -> None:
    with service.client() as client:
        answer = client.post(
            INFER, json=document(), headers={"Inference-Header-Content-Length": length.encode("utf-8")}
        )
    assert answer.status_code == 400
    assert "Inference-Header-Content-Length: expected a whole number" in answer.json()["error"]


@pytest.mark.parametrize(
    ("binary", "size", "reason"),
    [
        (b"\1\0\0\0", 4, "found one of 1 bytes where 0 are left"),
        (b"\xff\xff\xff\xffab", 6, "found one of 4294967295 bytes where 2 are left"),
        (b"\1\0", 2, "found one of 1 bytes where 0 are left"),
        (b"\1\0\0\0a", 4, "expected binary_data_size of the bytes behind the JSON, 5, found 4"),
        (b"\1\0\0\0a", 10**30, "expected binary_data_size of the bytes behind the JSON, 5"),
        (b"\1\0\0\0a" * 2, 10, "expected 1 elements by its shape, found 2"),
        (b"\0\0\0\0" * 1000, 4000, "expected 1 elements by its shape, found 1000"),
    ],
)
def test_binary_data_that_is_none(service: Served, binary: bytes, size: int, reason: str) -> None:
    header = json.dumps(document(tensor={"data": None, "parameters": {"binary_data_size": size}})).encode()
    headers = {"Inference-Header-Content-Length": str(len(header))}
    with service.client() as client:
        answer = client.post(INFER, content=header + binary, headers=headers)
    assert answer.status_code == 400
    assert reason in answer.json()["error"]


def test_too_many_images(service: Served) -> None:
    with service.client() as client:
        answer = client.post(INFER, json=document(tensor={"shape": [10**6], "data": []}))
    assert answer.status_code == 413
