"""Models that the runtime's tests make."""

from tests.runtime.conftest import fake_model

__all__ = ["fake_model"]
