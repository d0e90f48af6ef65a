"""Any model by its tensors' names: ``Session("any.onnx")({"x": array}) -> {"y": array}``."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Union

import numpy as np

from runtime.backends import load_tensors
from runtime.closing import Closing
from runtime.contract import Tensor


class Session(Closing):
    """An ONNX, or an engine that was built from one, with whatever inputs and outputs it has.

    Example:
        >>> with Session("pose.onnx") as session:
        ...     outputs = session({"images": images})
        >>> outputs["heat_maps"].shape

    Inputs and outputs are known by name and come in the ONNX's order, whatever the backend does with them; outputs
    have the ONNX's dtypes, and their shapes. Nothing is converted on its way in: another dtype or a shape that the
    model does not take is refused. Calls from several threads are safe.
    """

    def __init__(self, model: Union[str, Path], backend: str = "auto", **options: Any) -> None:
        """Load the model.

        Args:
            model: path of any ONNX, or of an engine with its sidecar.
            backend: see ``Detector``.
            options: the backend's; see ``Detector``.

        Raises:
            FileNotFoundError: no such file.
            ValueError: not a model that the backend reads, or an unusable argument.
            RuntimeError: the backend or device is not available.
        """
        self.path = Path(model)
        self._model = load_tensors(model, backend, **options)

    @property
    def inputs(self) -> dict[str, Tensor]:
        """The inputs by name: NumPy dtype names, and shapes with None for a free dimension."""
        return dict(self._model.inputs)

    @property
    def outputs(self) -> dict[str, Tensor]:
        """The outputs likewise; None also for a dimension that is not known before a run."""
        return dict(self._model.outputs)

    def __call__(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Run the model once.

        Args:
            feeds: every input by name, of its dtype and a shape that it takes.

        Returns:
            Every output by name, in the ONNX's order; the caller's own arrays.

        Raises:
            ValueError: an input is missing or unknown, or has another dtype or shape; names it.
            RuntimeError: the session is closed, or the backend failed, or an output has not the size that the file
                declares.
        """
        check_feeds(self.path, self._model.inputs, feeds)
        found = self._model.run(feeds)
        check_outputs(self.path, self._model.outputs, found)
        return {name: found[name] for name in self._model.outputs}

    def close(self) -> None:
        """Release the model. Calling it again does nothing."""
        self._model.close()


def check_feeds(path: Path, inputs: Mapping[str, Tensor], feeds: Mapping[str, np.ndarray]) -> None:
    """Refuse feeds that are not the model's inputs.

    Raises:
        ValueError: names the input, what was expected and what was found.
    """
    if set(feeds) != set(inputs):
        raise ValueError(
            f"model {path}: expected the inputs {_listed(inputs)}, found {', '.join(map(repr, feeds)) or 'none'}"
        )
    for name, tensor in inputs.items():
        array = feeds[name]
        if not isinstance(array, np.ndarray):
            raise ValueError(
                f"input {name}: expected a NumPy array, {tensor}, found a {type(array).__name__}"
            )
        fits = len(array.shape) == len(tensor.shape) and all(
            size in (None, found) for size, found in zip(tensor.shape, array.shape)
        )
        if str(array.dtype) != tensor.dtype or not fits:
            raise ValueError(
                f"input {name}: expected {tensor}, found {Tensor(str(array.dtype), array.shape)}; "
                f"{_remedy(tensor, array)}"
            )


def check_outputs(path: Path, outputs: Mapping[str, Tensor], found: Mapping[str, np.ndarray]) -> None:
    """Refuse outputs of another size than the file declares: onnxruntime only logs it.

    A declared 1 is often a batch that was written down when the model was traced, and does no harm.

    Raises:
        RuntimeError: names the output.
    """
    for name, tensor in outputs.items():
        shape = found[name].shape
        fits = len(shape) == len(tensor.shape) and all(
            size in (None, 1, there) for size, there in zip(tensor.shape, shape)
        )
        if tensor.shape and not fits:
            raise RuntimeError(
                f"model {path}: output {name}: expected {tensor} as the file declares, found {shape}; inside the file "
                "a Reshape has sizes of one image, so that images of a batch run into each other: run it with one, "
                "or export it with a dynamic batch"
            )


def _listed(inputs: Mapping[str, Tensor]) -> str:
    return ", ".join(f"{name!r}: {tensor}" for name, tensor in inputs.items())


def _remedy(tensor: Tensor, array: np.ndarray) -> str:
    if str(array.dtype) != tensor.dtype:
        return f"convert it, and scale it as the model was trained: array.astype({tensor.dtype!r})"
    if len(array.shape) != len(tensor.shape):
        return "add or remove dimensions: array[None] is a batch of one"
    if array.shape[:1] != tensor.shape[:1] and array.shape[1:] == tensor.shape[1:]:
        return "the file was exported for that batch alone: run it so, or export it with a dynamic batch"
    return "bring it to that size, or export the model with free dimensions"
