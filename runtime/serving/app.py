"""The service as an ASGI app: routes, and what every answer has in common."""

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any, Callable, Optional

from runtime.detector import Detector
from runtime.serving.frame import Frame, register_errors
from runtime.serving.metrics import required
from runtime.serving.options import ServingOptions
from runtime.serving.routes import add_detect, add_operations, add_v2
from runtime.serving.service import Service

TITLE = "Mask R-CNN"
_DESCRIPTION = (
    "Objects in images, with their masks. `POST /detect` takes image files; `/v2` is the Open Inference Protocol. "
    'What is refused is answered with `{"error": reason}`.'
)


def create_app(
    models: Mapping[str, Detector],
    options: Optional[ServingOptions] = None,
    *,
    log: Optional[Callable[[str], None]] = None,
) -> Any:
    """Return an ASGI app that serves opened models.

    It can be mounted in another app, and be tested without a server. ``app.state.service`` is its ``Service``: where
    the app is mounted, so that nobody tells it of the end, call ``app.state.service.close()`` before the models are
    closed.

    Args:
        models: by name; the first is the default. They stay the caller's, who closes them.
        options: see ``ServingOptions``.
        log: is given a line for each request, in the form that ``options.log`` names.

    Returns:
        A FastAPI app.

    Raises:
        ValueError: there is no model.
        RuntimeError: the extra ``serve`` is not installed.
    """
    check_installed()
    return app_of(Service(models, options or ServingOptions()), log=log)


def check_installed() -> None:
    """Refuse to begin without what the app needs.

    Raises:
        RuntimeError: the extra ``serve`` is not installed.
    """
    for name in ("fastapi_offline", "python_multipart"):
        required(name)


def app_of(service: Service, *, log: Optional[Callable[[str], None]] = None) -> Any:
    """Return the app around a service; see ``create_app``."""
    offline = required("fastapi_offline").FastAPIOffline

    @asynccontextmanager
    async def lifespan(app: Any) -> AsyncIterator[None]:
        yield
        service.close()

    app = offline(
        title=TITLE, description=_DESCRIPTION, version=_version(), lifespan=lifespan, redoc_url=None
    )
    app.state.service = service
    register_errors(app, service)
    for add in (add_operations, add_detect, add_v2):
        add(app, service)
    app.add_middleware(Frame, service=service, log=log)
    return app


def _version() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("maskrcnn-deploy")
    except PackageNotFoundError:
        return "0"
