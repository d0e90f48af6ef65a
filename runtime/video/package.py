"""PyAV, which brings FFmpeg along."""

from types import ModuleType


def load_av() -> ModuleType:
    """Return ``av``, imported where a video is opened since nothing else needs it.

    Raises:
        RuntimeError: it is not installed.
    """
    try:
        import av
    except ImportError as error:
        raise RuntimeError(
            f"videos: expected the Python package av, found {error}; `pip install av`, or `pip install '.[video]'`"
        ) from error
    return av
