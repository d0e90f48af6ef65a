"""The paths of the service, and what each does."""

import json
from dataclasses import dataclass
from importlib.resources import files
from typing import Any, Callable, Optional

from runtime.messages import said, shown
from runtime.serving.answers import FORMATS, JPEG, MASKS, PNG, image_answer, overlay, wanted_kind
from runtime.serving.batching import Found
from runtime.serving.bodies import NamedImage, images_in, read_body
from runtime.serving.frame import BODY_IS_READ
from runtime.serving.images import check_declared
from runtime.serving.open_inference import (
    HEADER_LENGTH,
    VERSION,
    InferenceRequest,
    described,
    encoded_response,
    parsed_request,
)
from runtime.serving.refusals import BAD_REQUEST, MODEL_FAILED, NOT_FOUND, NOT_READY, Refused
from runtime.serving.service import ServedModel, Service, Wish

NAME = "maskrcnn-serve"
TIMEOUT_HEADER = "x-timeout-s"
# As of `runtime.infer`, in files and in overlays.
_MIN_SCORE, _MIN_SCORE_DRAWN = 0.05, 0.3
_BINARY = {"type": "string", "format": "binary"}
# What of the page is inside it; it loads nothing else.
_PAGE_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; "
    "img-src blob: data:; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
}


@dataclass(frozen=True)
class _Plain:
    """A request to ``/detect``."""

    images: tuple[NamedImage, ...]
    kind: Optional[str]
    masks: str
    min_score: float
    timeout_s: Optional[float]


def add_operations(app: Any, service: Service) -> None:
    """Add the page, and what operators need."""
    from starlette.responses import HTMLResponse, Response

    page = files("runtime.serving").joinpath("page.html").read_text(encoding="utf-8")

    @app.get("/", include_in_schema=False)
    async def index() -> Any:
        return HTMLResponse(page, headers=_PAGE_HEADERS)

    @app.get("/metrics", tags=["operation"], summary="Counters and histograms for Prometheus")
    async def metrics() -> Any:
        text, kind = service.metrics.text()
        return Response(text, media_type=kind)

    @app.get("/v2/health/live", tags=["Open Inference Protocol"], summary="Whether the service works")
    async def live() -> Any:
        return _health(service.is_alive, "a model's thread has ended; start the service again")

    @app.get("/v2/health/ready", tags=["Open Inference Protocol"], summary="Whether requests are wanted")
    async def ready() -> Any:
        return _health(service.is_ready, "the service is ending; ask another one")


def add_detect(app: Any, service: Service) -> None:
    """Add ``/detect``."""
    from fastapi import Request
    from starlette.responses import Response

    async def detect(request: Request) -> Any:
        query = request.query_params
        model = service.model(query.get("model"))
        model.batcher.check_room()
        with service.memory.share() as share:
            body = await read_body(request.receive, request.headers, service.options, share)
            setattr(request.state, BODY_IS_READ, True)
            with model.batcher.place() as place:
                plain = await service.in_thread(_plain, body, request, service)
                del body
                wish = Wish(plain.min_score, plain.timeout_s, plain.kind is not None)
                found = await service.detect(model, plain.images, wish, receive=request.receive, place=place)
        content, kind = await _written(service, _plain_answer, model, plain, found)
        return Response(content, media_type=kind)

    app.add_api_route(
        "/detect",
        detect,
        methods=["POST"],
        tags=["plain"],
        summary="Find objects in image files",
        openapi_extra={"parameters": _detect_parameters(service), "requestBody": _detect_body()},
        responses={200: {"content": {JPEG: {"schema": _BINARY}, PNG: {"schema": _BINARY}}}, **_refusals()},
    )


def add_line(app: Any, service: Service, min_score: float) -> None:
    """Add ``POST /``: an image file is answered as a line of ``detections.jsonl``, by the first model."""
    from fastapi import Request
    from starlette.responses import Response

    async def line(request: Request) -> Any:
        model = service.model()
        model.batcher.check_room()
        with service.memory.share() as share:
            body = await read_body(request.receive, request.headers, service.options, share)
            setattr(request.state, BODY_IS_READ, True)
            check_declared(body, "image", service.options.max_pixels)
            image = NamedImage("image", body)
            (found,) = await service.detect(model, [image], Wish(min_score), receive=request.receive)
        content = await _written(service, _line_of, found)
        return Response(content, media_type="application/json")

    summary = "Find objects in an image file"
    app.add_api_route("/", line, methods=["POST"], tags=["plain"], summary=summary, responses=_refusals())


def _line_of(found: Found) -> bytes:
    return json.dumps(image_answer(found.detections)).encode("ascii")


def _plain(body: bytes, request: Any, service: Service) -> _Plain:
    query, headers = request.query_params, request.headers
    kind = wanted_kind(_chosen(query, "format", FORMATS), headers.get("accept", ""))
    images = images_in(body, headers.get("content-type", ""), service.options.max_images)
    if kind is not None and len(images) != 1:
        raise Refused(BAD_REQUEST, f"format: expected one image for an overlay, found {len(images)}")
    for image in images:
        check_declared(image.data, image.name, service.options.max_pixels)
    return _Plain(
        images=tuple(images),
        kind=kind,
        masks=_chosen(query, "masks", MASKS) or MASKS[0],
        min_score=_number("min_score", query.get("min_score"), 1.0, _MIN_SCORE_DRAWN if kind else _MIN_SCORE),
        timeout_s=_timeout(query.get("timeout_s", headers.get(TIMEOUT_HEADER))),
    )


def _plain_answer(model: ServedModel, plain: _Plain, found: list[Found]) -> tuple[bytes, str]:
    if plain.kind is not None:
        return overlay(found[0].image, found[0].detections, plain.kind), plain.kind
    images = [image_answer(one.detections, plain.masks) for one in found]
    return json.dumps({"model": model.name, "images": images}).encode("ascii"), "application/json"


async def _written(service: Service, write: Callable[..., Any], *arguments: Any) -> Any:
    """Return what a function makes of the results: masks are pasted and encoded only now."""
    try:
        return await service.in_thread(write, *arguments)
    except (ValueError, RuntimeError, MemoryError) as error:
        raise Refused(MODEL_FAILED, f"the results cannot be written: {said(error)}") from error


def _chosen(query: Any, name: str, choices: tuple[str, ...]) -> Optional[str]:
    value = query.get(name)
    if value is not None and value not in choices:
        raise Refused(BAD_REQUEST, f"{name}: expected one of {', '.join(choices)}, found {shown(value)}")
    return value


def _number(name: str, text: Optional[str], most: float, default: float) -> float:
    try:
        value = default if text is None else float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= most:
        raise Refused(BAD_REQUEST, f"{name}: expected a number from 0 to {most:g}, found {shown(text)}")
    return value


def _timeout(text: Optional[str]) -> Optional[float]:
    """Return the seconds that a client asks for; 0 is none, as in the protocol."""
    return _number("timeout_s", text, 1e9, 0.0) or None


def add_v2(app: Any, service: Service) -> None:
    """Add the Open Inference Protocol."""
    from fastapi import Request
    from starlette.responses import Response

    def add(path: str, handler: Callable[..., Any], method: str, summary: str, **more: Any) -> None:
        common = {"tags": ["Open Inference Protocol"], "summary": summary, "methods": [method]}
        app.add_api_route(path, handler, **common, **more)

    async def server() -> Any:
        return {"name": NAME, "version": app.version, "extensions": ["binary_tensor_data"]}

    async def models() -> Any:
        return {"models": list(service.models)}

    async def metadata(name: str, version: str = VERSION) -> Any:
        model = _versioned(service, name, version)
        return described(model.name, model.detector.metadata, model.platform)

    async def ready(name: str, version: str = VERSION) -> Any:
        _versioned(service, name, version)
        return _health(service.is_ready, "the service is ending; ask another one")

    async def infer(request: Request, name: str, version: str = VERSION) -> Any:
        model = _versioned(service, name, version)
        model.batcher.check_room()
        with service.memory.share() as share:
            body = await read_body(request.receive, request.headers, service.options, share)
            setattr(request.state, BODY_IS_READ, True)
            header = request.headers.get(HEADER_LENGTH)
            with model.batcher.place() as place:
                wanted = await service.in_thread(_inference, body, header, model, service)
                del body
                timeout_s = wanted.timeout_s or _timeout(request.headers.get(TIMEOUT_HEADER))
                wish = Wish(wanted.min_score, timeout_s)
                found = await service.detect(model, wanted.images, wish, receive=request.receive, place=place)
        detections = [one.detections for one in found]
        content, length = await _written(service, encoded_response, wanted, model.name, detections)
        if length is None:
            return Response(content, media_type="application/json")
        headers = {"Inference-Header-Content-Length": str(length)}
        return Response(content, media_type="application/octet-stream", headers=headers)

    add("/v2", server, "GET", "What this is")
    add("/v2/models", models, "GET", "Names of the models")
    for path in ("/v2/models/{name}", "/v2/models/{name}/versions/{version}"):
        add(path, metadata, "GET", "Inputs, outputs and classes of a model")
        add(f"{path}/ready", ready, "GET", "Whether a model's requests are wanted")
        add(
            f"{path}/infer",
            infer,
            "POST",
            "Find objects in image files, as tensors",
            openapi_extra={"requestBody": _infer_body()},
            responses=_refusals(),
        )


def _inference(
    body: bytes, header_length: Optional[str], model: ServedModel, service: Service
) -> InferenceRequest:
    wanted = parsed_request(body, header_length, model.detector.metadata, service.options.max_images)
    for image in wanted.images:
        check_declared(image.data, image.name, service.options.max_pixels)
    return wanted


def _versioned(service: Service, name: str, version: str) -> ServedModel:
    if version != VERSION:
        raise Refused(NOT_FOUND, f"version: expected {VERSION}, found {shown(version)}")
    return service.model(name)


def _health(is_well: bool, reason: str) -> Any:
    from starlette.responses import Response

    if not is_well:
        raise Refused(NOT_READY, reason)
    return Response(status_code=200)


def _refusals() -> dict[int, Any]:
    """Return what OpenAPI says about them."""
    schema = {"type": "object", "properties": {"error": {"type": "string"}}, "required": ["error"]}
    words = {
        400: "the request or an image in it is not one",
        404: "no such model",
        408: "the request did not come in time",
        413: "too many bytes, pixels or images",
        429: "the queue is full; Retry-After says when to ask again",
        500: "the model failed on an image",
        503: "the service is ending, or its memory is taken",
        504: "no answer within the time",
    }
    content = {"application/json": {"schema": schema}}
    return {status: {"description": text, "content": content} for status, text in words.items()}


def _detect_parameters(service: Service) -> list[dict[str, Any]]:
    def parameter(name: str, words: str, schema: dict[str, Any], place: str = "query") -> dict[str, Any]:
        return {"name": name, "in": place, "required": False, "description": words, "schema": schema}

    names = list(service.models)
    seconds = {"type": "number", "minimum": 0}
    return [
        parameter("model", f"default: {names[0]}", {"type": "string", "enum": names}),
        parameter(
            "min_score", "default: 0.05, of an overlay 0.3", {"type": "number", "minimum": 0, "maximum": 1}
        ),
        parameter("masks", "run lengths, polygons or none", {"type": "string", "enum": list(MASKS)}),
        parameter("format", "default: by Accept", {"type": "string", "enum": list(FORMATS)}),
        parameter("timeout_s", "at most the service's own", seconds),
        parameter("X-Timeout-S", "the same as a header", seconds, "header"),
    ]


def _detect_body() -> dict[str, Any]:
    text = {"type": "string", "format": "byte"}
    files_schema = {"type": "object", "properties": {"files": {"type": "array", "items": _BINARY}}}
    json_schema = {
        "type": "object",
        "properties": {"image": {"oneOf": [text, {"type": "array", "items": text}]}},
        "required": ["image"],
    }
    kinds = {kind: {"schema": _BINARY} for kind in (JPEG, PNG, "image/webp", "image/bmp", "image/tiff")}
    return {
        "required": True,
        "content": {
            **kinds,
            "multipart/form-data": {"schema": files_schema},
            "application/json": {"schema": json_schema},
        },
    }


def _infer_body() -> dict[str, Any]:
    tensor = {
        "type": "object",
        "properties": {
            "name": {"type": "string", "enum": ["image"]},
            "datatype": {"type": "string", "enum": ["BYTES"]},
            "shape": {"type": "array", "items": {"type": "integer"}},
            "data": {"type": "array", "items": {"type": "string", "format": "byte"}},
        },
    }
    properties = {
        "id": {"type": "string"},
        "parameters": {"type": "object"},
        "inputs": {"type": "array", "items": tensor},
        "outputs": {"type": "array", "items": {"type": "object"}},
    }
    schema = {"type": "object", "properties": properties, "required": ["inputs"]}
    return {"required": True, "content": {"application/json": {"schema": schema}}}
