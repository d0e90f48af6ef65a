"""``/detect``: what goes in, what comes out, what is refused; beside ``Detector`` and pycocotools."""

import base64
import json
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import pytest
from pycocotools import mask as coco_mask

from examples import IMAGES_DIR
from runtime import Detections, Detector
from runtime.images import read_image
from runtime.masks import MaskCrop
from runtime.png_marks import marked
from runtime.serving.answers import image_answer
from tests.runtime.serving.servers import Served

SQUARE, WIDE = IMAGES_DIR / "square.jpg", IMAGES_DIR / "landscape.jpg"
BASE64 = base64.b64encode(SQUARE.read_bytes()).decode()


@dataclass(frozen=True, eq=False)
class OneMask:
    """The mask of the one object that was found."""

    only: MaskCrop

    def crop(self, index: int) -> MaskCrop:
        return self.only


@pytest.fixture(scope="module")
def expected(detectors: dict[str, Detector]) -> Detections:
    (found,) = detectors["fake"]([read_image(SQUARE)])
    return found


def post(service: Served, path: str = "/detect", **options: Any) -> Any:
    with service.client() as client:
        return client.post(path, **options)


def check(image: dict, expected: Detections) -> None:
    """Compare an answer with what the detector itself finds."""
    height, width = expected.image_size
    assert (image["width"], image["height"]) == (width, height)
    assert len(image["detections"]) == len(expected) == 3
    for index, one in enumerate(image["detections"]):
        x, y, w, h = one["bbox"]
        assert np.allclose([x, y, x + w, y + h], expected.boxes[index], atol=0.002)
        assert one["score"] == pytest.approx(float(expected.scores[index]), abs=1e-6)
        assert one["category"] == expected.classes[expected.labels[index]]
        assert one["category_id"] == expected.labels[index] + 1
        assert np.array_equal(coco_mask.decode(one["segmentation"]), expected.masks[index])


WAYS = {
    "image/jpeg": {"content": SQUARE.read_bytes(), "headers": {"Content-Type": "image/jpeg"}},
    "no type": {"content": SQUARE.read_bytes()},
    "curl's type": {
        "content": SQUARE.read_bytes(),
        "headers": {"Content-Type": "application/x-www-form-urlencoded"},
    },
    "chunks": {"content": iter([SQUARE.read_bytes()[:1000], SQUARE.read_bytes()[1000:]])},
    "form": {"files": {"file": ("square.jpg", SQUARE.read_bytes(), "image/jpeg")}},
    "form with fields": {"files": {"x": ("ä\n.jpg", SQUARE.read_bytes())}, "data": {"note": "no image"}},
    "JSON": {"json": {"image": BASE64}},
    "JSON, a list": {"json": {"images": [BASE64]}},
    "JSON, a URL of the data": {"json": {"image": f"data:image/jpeg;base64,{BASE64}"}},
    "JSON, lines": {"json": {"image": "\n".join(BASE64[i : i + 76] for i in range(0, len(BASE64), 76))}},
}


@pytest.mark.parametrize("way", WAYS)
def test_an_image_comes_in_many_ways_and_the_answer_is_the_detector_s(
    service: Served, expected: Detections, way: str
) -> None:
    answer = post(service, **WAYS[way])
    assert answer.status_code == 200, answer.text
    content = answer.json()
    assert content["model"] == "fake"
    (image,) = content["images"]
    check(image, expected)


def test_png_webp_bmp_and_tiff(service: Served) -> None:
    pixels = read_image(SQUARE)
    for suffix in (".png", ".webp", ".bmp", ".tiff"):
        answer = post(service, content=cv2.imencode(suffix, pixels)[1].tobytes())
        assert answer.json()["images"][0]["width"] == 512, suffix


def test_several_images_keep_their_order(service: Served, detectors: dict[str, Detector]) -> None:
    paths = [WIDE, SQUARE, WIDE]
    answer = post(service, files=[("f", (p.name, p.read_bytes())) for p in paths])
    for path, image in zip(paths, answer.json()["images"]):
        check(image, detectors["fake"]([read_image(path)])[0])


def test_pycocotools_makes_the_masks_of_the_polygons(service: Served, expected: Detections) -> None:
    (image,) = post(service, "/detect?masks=polygon", content=SQUARE.read_bytes()).json()["images"]
    for one, mask in zip(image["detections"], expected.masks):
        polygons = one["segmentation"]
        assert all(isinstance(value, int) for polygon in polygons for value in polygon)
        drawn = coco_mask.merge(coco_mask.frPyObjects(polygons, *mask.shape))
        assert np.array_equal(coco_mask.decode(drawn), mask)


def test_a_polygon_of_the_service_leaves_a_hole_free() -> None:
    pixels = np.ones((5, 7), bool)
    pixels[2, 3:5] = False
    found = Detections(
        np.array([[2, 1, 9, 6]], np.float32),
        np.array([0.9], np.float32),
        np.array([0], np.int32),
        (8, 10),
        ("ring",),
        mask_source=OneMask(MaskCrop(pixels, 1, 2)),
    )
    ((polygon,),) = [one["segmentation"] for one in image_answer(found, "polygon")["detections"]]
    (drawn,) = coco_mask.frPyObjects([polygon], 8, 10)
    expected = np.zeros((8, 10), bool)
    expected[1:6, 2:9] = pixels
    assert np.array_equal(coco_mask.decode(drawn), expected)


def test_no_masks_and_a_model_without(service: Served) -> None:
    (image,) = post(service, "/detect?masks=none", content=SQUARE.read_bytes()).json()["images"]
    assert all("segmentation" not in one for one in image["detections"])
    for masks in ("rle", "polygon", "none"):
        answer = post(service, f"/detect?model=boxes&masks={masks}", content=SQUARE.read_bytes()).json()
        assert answer["model"] == "boxes"
        assert [set(one) for one in answer["images"][0]["detections"]] == [
            {"category", "category_id", "bbox", "score"}
        ] * 3


def test_the_least_score(service: Served) -> None:
    for text, number in (("0", 3), ("0.5", 2), ("0.500001", 1), ("1", 0)):
        (image,) = post(service, f"/detect?min_score={text}", content=SQUARE.read_bytes()).json()["images"]
        assert len(image["detections"]) == number, text


@pytest.mark.parametrize(
    ("path", "accept", "kind"),
    [
        ("/detect?format=overlay", None, "image/jpeg"),
        ("/detect?format=overlay", "image/png", "image/png"),
        ("/detect", "image/png", "image/png"),
        ("/detect", "image/jpeg, */*", "image/jpeg"),
        ("/detect", "application/json, image/png", "application/json"),
        ("/detect?format=json", "image/png", "application/json"),
        ("/detect", "*/*", "application/json"),
        ("/detect", "image/*", "application/json"),
        ("/detect", "image/png;q=0, application/json", "application/json"),
        ("/detect", "image/png; q=0.000", "application/json"),
        ("/detect", "image/jpeg;q=0.2, application/json;q=0.9", "application/json"),
        ("/detect", "application/json;q=0.2, image/jpeg;q=0.5, image/png;q=0.7", "image/png"),
        ("/detect?format=overlay", "image/png;q=0, */*", "image/jpeg"),
        ("/detect", "image/png;q=x", "image/png"),
    ],
)
def test_the_answer_is_a_picture_where_one_is_asked_for(
    service: Served, path: str, accept: str, kind: str
) -> None:
    headers = {} if accept is None else {"Accept": accept}
    answer = post(service, path, content=SQUARE.read_bytes(), headers=headers)
    assert answer.headers["content-type"] == kind
    if kind == "application/json":
        return
    picture = cv2.imdecode(np.frombuffer(answer.content, np.uint8), cv2.IMREAD_COLOR)
    before = read_image(SQUARE)
    assert picture.shape == before.shape
    assert (cv2.absdiff(picture, before).max(axis=2) > 60).mean() > 0.01  # something is drawn
    if kind == "image/png":  # `infer` leaves it alone, in a folder of images
        assert answer.content == marked(cv2.imencode(".png", picture)[1].tobytes())


FORM = b"".join(
    b'--b\r\nContent-Disposition: form-data; name="%s"; filename="%s.jpg"\r\n\r\n%s\r\n'
    % (name, name, SQUARE.read_bytes())
    for name in (b"one", b"two")
) + (b"--b--\r\n")
FORM_HEADERS = {"Content-Type": "multipart/form-data; boundary=b"}

REFUSED = {
    "no body": ("/detect", {}, 400, "expected an image file (JPEG"),
    "text": ("/detect", {"content": b"hello"}, 400, "found 5 bytes that begin with b'hello'"),
    "cut": ("/detect", {"content": SQUARE.read_bytes()[:9000]}, 400, "image: expected a whole JPEG"),
    "damaged": (
        "/detect",
        {"content": cv2.imencode(".png", np.eye(9))[1].tobytes()[:60]},
        400,
        "cannot decode",
    ),
    "no file in the form": (
        "/detect",
        {"files": {"a": (None, "text")}},
        400,
        "one or more images, found none",
    ),
    "an empty file": ("/detect", {"files": {"a": ("a.jpg", b"")}}, 400, "a.jpg: expected an image file"),
    "a form without boundary": (
        "/detect",
        {"content": b"x", "headers": {"Content-Type": "multipart/form-data"}},
        400,
        "expected a multipart form with files",
    ),
    "many fields": ("/detect", {"files": [("a", (None, "b"))] * 101}, 400, "found more than 100 fields"),
    "many files": (
        "/detect",
        {"files": [("a", ("b", b"c"))] * 17},
        413,
        "expected up to 16 images in one request",
    ),
    "a form cut in its second file": (
        "/detect",
        {"content": FORM[: -len(FORM) // 4], "headers": FORM_HEADERS},
        400,
        "expected a multipart form with files, found another (it ends before its last boundary)",
    ),
    "a form without its end": (
        "/detect",
        {"content": FORM[: -len(b"--b--\r\n")], "headers": FORM_HEADERS},
        400,
        "it ends before its last boundary",
    ),
    "JSON that is none": (
        "/detect",
        {"content": b"{", "headers": {"Content-Type": "application/json"}},
        400,
        "body: expected JSON, found '{'",
    ),
    "deep JSON": (
        "/detect",
        {"content": b"[" * 100_000, "headers": {"Content-Type": "application/json"}},
        400,
        "body: expected JSON",
    ),
    "JSON of another kind": ("/detect", {"json": [1]}, 400, "body: expected a JSON object, found [1]"),
    "JSON without images": ("/detect", {"json": {"picture": 1}}, 400, 'expected {"image": base64}'),
    "JSON with images in two places": (
        "/detect",
        {"json": {"image": BASE64, "images": [BASE64]}},
        400,
        'expected "image" or "images", found both',
    ),
    "no base64": (
        "/detect",
        {"json": {"image": "?"}},
        400,
        "image: expected an image file in base64, found '?'",
    ),
    "a number": (
        "/detect",
        {"json": {"images": [BASE64, 3]}},
        400,
        "images[1]: expected an image file in base64, found 3",
    ),
    "an empty list": ("/detect", {"json": {"images": []}}, 400, "one or more images, found none"),
    "many in a list": ("/detect", {"json": {"images": [""] * 17}}, 413, "found 17 or more"),
    "one of two": (
        "/detect",
        {"files": [("a", ("a.jpg", SQUARE.read_bytes())), ("b", ("b.jpg", b"b"))]},
        400,
        "b.jpg: ",
    ),
    "no such model": ("/detect?model=x", {}, 404, "model: expected one of fake, boxes, found 'x'"),
    "a score": (
        "/detect?min_score=2",
        {"content": SQUARE.read_bytes()},
        400,
        "min_score: expected a number from 0 to 1",
    ),
    "a score that is none": (
        "/detect?min_score=nan",
        {"content": SQUARE.read_bytes()},
        400,
        "min_score: expected",
    ),
    "masks": (
        "/detect?masks=x",
        {"content": SQUARE.read_bytes()},
        400,
        "masks: expected one of rle, polygon, none",
    ),
    "a format": (
        "/detect?format=x",
        {"content": SQUARE.read_bytes()},
        400,
        "format: expected one of json, overlay",
    ),
    "a time": ("/detect?timeout_s=-1", {"content": SQUARE.read_bytes()}, 400, "timeout_s: expected"),
    "two overlays": (
        "/detect?format=overlay",
        {"files": [("a", ("a.jpg", SQUARE.read_bytes()))] * 2},
        400,
        "expected one image for an overlay, found 2",
    ),
    "compressed": (
        "/detect",
        {"content": b"x", "headers": {"Content-Encoding": "gzip"}},
        415,
        "Content-Encoding: expected none, found 'gzip'",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_refused_says_why(service: Served, case: str) -> None:
    path, options, status, reason = REFUSED[case]
    answer = post(service, path, **options)
    assert answer.status_code == status, answer.text
    assert set(answer.json()) == {"error"}
    assert reason in answer.json()["error"]


def test_after_all_that_it_still_works_on_the_same_connection(service: Served, expected: Detections) -> None:
    with service.client() as client:
        for path, options, status, _ in REFUSED.values():
            assert client.post(path, **options).status_code == status
        check(client.post("/detect", content=SQUARE.read_bytes()).json()["images"][0], expected)


def test_other_paths_and_methods(service: Served) -> None:
    with service.client() as client:
        for answer, status in (
            (client.get("/x"), 404),
            (client.get("/detect"), 405),
            (client.post("/x", content=b"y"), 404),
        ):
            assert answer.status_code == status
            assert set(answer.json()) == {"error"}


@pytest.mark.parametrize("end", [b"--b--\r\n", b"--b--", b"--b--\r\nwhat comes behind it counts for nothing"])
def test_a_form_ends_with_its_last_boundary(service: Served, end: bytes) -> None:
    content = FORM[: -len(b"--b--\r\n")] + end
    answer = post(service, content=content, headers=FORM_HEADERS)
    assert answer.status_code == 200, answer.text
    assert len(answer.json()["images"]) == 2


def test_the_head_of_what_can_be_got(service: Served) -> None:
    with service.client() as client:
        for path in (
            "/",
            "/v2",
            "/v2/health/live",
            "/v2/health/ready",
            "/v2/models/fake",
            "/metrics",
            "/docs",
        ):
            head, whole = client.head(path), client.get(path)
            assert (head.status_code, head.content) == (200, b""), path
            assert head.headers.get("content-type") == whole.headers.get("content-type")
        assert client.head("/detect").status_code == 405
        assert client.head("/v2/models/x").status_code == 404


def test_json_has_no_value_that_json_has_not(service: Served) -> None:
    text = post(service, content=SQUARE.read_bytes()).text
    json.loads(text, parse_constant=lambda word: pytest.fail(word))
