"""A model file in memory, and in a process that was forked off meanwhile: there it is opened again."""

import os
import threading
import weakref
from pathlib import Path
from typing import Any, Callable, Generic, Optional, TypeVar

from runtime.files import file_identity
from runtime.forks import never_free

Loaded = TypeVar("Loaded")


class ProcessModel(Generic[Loaded]):
    """What a library made of a model file, and in a forked process another one: the first one's threads are not there.

    Where there is nothing to miss, a forked process shares the memory of the first.
    """

    def __init__(self, path: Path, open_model: Callable[[], Loaded], *, is_inherited: bool = False) -> None:
        """Open the model.

        Args:
            path: of its file.
            open_model: opens it; called again in a forked process, where it may refuse.
            is_inherited: a forked process can use what this one has.
        """
        self._path, self._open_model, self._is_inherited = path.absolute(), open_model, is_inherited
        self._file = file_identity(path)
        self._lock = threading.Lock()
        self._model: Optional[Loaded] = open_model()
        self._is_closed = False
        _models.add(self)

    def here(self) -> Loaded:
        """Return what this process has.

        Raises:
            RuntimeError: it is closed, or cannot be made again after a fork.
        """
        model = self._model
        if model is None:
            with self._lock:
                if self._is_closed:
                    raise RuntimeError("model: expected an open one, found it closed; make a new Detector")
                model = self._model = self._model or self._opened_again()
        return model

    def leave_to_parent(self) -> None:
        """Have another one made when it is needed; called in a forked process, before anything else runs."""
        self._lock = threading.Lock()  # another thread of the parent may have had it
        if self._model is None or self._is_inherited:
            return
        never_free(self._model)
        self._model = None

    def close(self) -> None:
        """Release it."""
        with self._lock:
            self._is_closed, self._model = True, None

    def _opened_again(self) -> Loaded:
        found = file_identity(self._path)
        if found != self._file:
            raise RuntimeError(
                f"model {self._path}: expected the file that was loaded before this process was forked, found "
                f"{'another' if found else 'nothing'}; make the Detector after the fork"
            )
        return self._open_model()


_models: "weakref.WeakSet[ProcessModel[Any]]" = weakref.WeakSet()


def _leave_models_to_parent() -> None:
    for model in list(_models):
        model.leave_to_parent()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_leave_models_to_parent)
