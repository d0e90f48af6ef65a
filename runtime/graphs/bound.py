"""A session whose inputs and outputs are bound to memory: each is copied once, to where it is wanted."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from runtime.runner import NewArray

if TYPE_CHECKING:
    import onnxruntime


class BoundSession:
    """Runs a session on a GPU; its outputs' shapes have to follow from those of its inputs. For any thread."""

    def __init__(self, session: "onnxruntime.InferenceSession", new_array: NewArray = np.empty) -> None:
        """Begin.

        Args:
            session: on the GPU.
            new_array: where outputs arrive. Page-locked memory is what the GPU writes into by itself.
        """
        self._session, self._new_array = session, new_array
        self._names = [output.name for output in session.get_outputs()]
        # By the inputs' shapes: those of the outputs, and their dtypes.
        self._known: dict[tuple[tuple[int, ...], ...], dict[str, tuple[tuple[int, ...], np.dtype]]] = {}

    def run(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Return the outputs by name; the arrays are the caller's.

        Args:
            feeds: every input. What is page-locked is copied by the GPU itself.

        Raises:
            RuntimeError: onnxruntime failed on the GPU.
            onnxruntime's own: it takes no such arrays; see ``run_errors``.
        """
        binding = self._session.io_binding()
        for name, array in feeds.items():
            binding.bind_cpu_input(name, np.ascontiguousarray(array))
        key = tuple(array.shape for array in feeds.values())
        if key in self._known:
            return self._into_own_arrays(binding, key)
        for name in self._names:
            binding.bind_output(name)
        self._session.run_with_iobinding(binding)
        outputs = dict(zip(self._names, binding.copy_outputs_to_cpu()))
        self._known[key] = {name: (array.shape, array.dtype) for name, array in outputs.items()}
        return outputs

    def _into_own_arrays(
        self, binding: "onnxruntime.IOBinding", key: tuple[tuple[int, ...], ...]
    ) -> dict[str, np.ndarray]:
        outputs = {name: self._new_array(shape, dtype) for name, (shape, dtype) in self._known[key].items()}
        for name, array in outputs.items():
            binding.bind_output(name, "cpu", 0, array.dtype, array.shape, array.ctypes.data)
        self._session.run_with_iobinding(binding)
        return outputs
