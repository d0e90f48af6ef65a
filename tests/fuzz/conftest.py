"""Models that the runtime's tests make."""

from tests.runtime.conftest import embedded, embedded_path, fake_model

__all__ = ["embedded", "embedded_path", "fake_model"]
