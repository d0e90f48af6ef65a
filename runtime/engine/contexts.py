"""Execution contexts: one for each profile of an engine, which take turns on one stream and in the same memory."""

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from typing import Any, Callable, Optional

from runtime.cuda.binding import Cuda
from runtime.cuda.memory import DeviceMemory
from runtime.engine.config import Shapes
from runtime.engine.library import Library

InputShapes = Mapping[str, tuple[int, ...]]


class GraphCache:
    """The network's launches for the latest shapes, captured as one CUDA graph for each set of addresses.

    Of the latest shapes only: a graph may read host memory that the context rewrites when its shapes change.
    """

    def __init__(self) -> None:
        self.failure = ""
        self._shapes: Any = None
        self._graphs: dict[Any, Any] = {}
        self._num_calls: dict[Any, int] = {}

    def run(self, addresses: Any, shapes: Any, enqueue: Callable[[], None], cuda: Cuda, stream: Any) -> None:
        """Launch the graph of these shapes and addresses, captured first where they have been seen often enough."""
        if shapes != self._shapes:
            self.clear(cuda)
            self._shapes = shapes
        if self._is_due(addresses):
            self._capture(addresses, enqueue, cuda, stream)
        self._num_calls[addresses] = self._num_calls.get(addresses, 0) + 1
        if addresses in self._graphs:
            cuda.launch(self._graphs[addresses], stream)
        else:
            enqueue()

    def _is_due(self, addresses: Any) -> bool:
        # The first call of new shapes, and of new addresses, does work on the host that must not be captured.
        warm = sum(self._num_calls.values()) >= 2 and addresses in self._num_calls
        return warm and addresses not in self._graphs and not self.failure

    def _capture(self, addresses: Any, enqueue: Callable[[], None], cuda: Cuda, stream: Any) -> None:
        try:
            cuda.begin_capture(stream)
            try:
                enqueue()
            finally:
                graph = cuda.end_capture(stream)
        except RuntimeError as error:
            self.failure = str(error)
        else:
            self._graphs[addresses] = graph

    def clear(self, cuda: Cuda) -> None:
        """Release the graphs."""
        for graph in self._graphs.values():
            cuda.free_graph(graph)
        self._graphs, self._num_calls, self._shapes = {}, {}, None


class ProfileContext:
    """The execution context of one profile.

    Attributes:
        context: TensorRT's.
        limits: least, best and largest shape of every input, by name.
        shapes: of the inputs as they are set, by name; empty before the first, and where setting them failed.
        output_shapes: those that follow.
        graphs: CUDA graphs of its launches, None without.
    """

    def __init__(self, context: Any, limits: Mapping[str, Shapes], graphs: Optional[GraphCache]) -> None:
        self.context, self.limits, self.graphs = context, dict(limits), graphs
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.output_shapes: dict[str, tuple[int, ...]] = {}

    def takes(self, shapes: InputShapes) -> bool:
        """Return whether the profile has these shapes of inputs."""
        return all(is_within(shape, self.limits[name]) for name, shape in shapes.items())

    def distance(self, shapes: InputShapes) -> int:
        """Return how far shapes are from those that the profile is tuned for."""
        return sum(abs(a - b) for name, s in shapes.items() for a, b in zip(s, self.limits[name][1]))


def is_within(shape: Sequence[int], limits: Shapes) -> bool:
    """Return whether a shape lies between the least and the largest."""
    low, _, high = limits
    return len(shape) == len(low) and all(a <= size <= b for a, size, b in zip(low, shape, high))


def union(limits: Sequence[Shapes]) -> Shapes:
    """Return the least and the largest shape of several profiles, and the best of the last."""
    low = tuple(min(sizes) for sizes in zip(*(shapes[0] for shapes in limits)))
    high = tuple(max(sizes) for sizes in zip(*(shapes[2] for shapes in limits)))
    return low, limits[-1][1], high


def open_contexts(
    engine: Any,
    inputs: Sequence[str],
    *,
    library: Library,
    cuda: Cuda,
    stream: Any,
    cuda_graphs: bool,
    stack: ExitStack,
) -> list[ProfileContext]:
    """Open a context for each profile of an engine; several of them compute in the same memory, one at a time.

    Args:
        engine: TensorRT's.
        inputs: names of its inputs.
        library, cuda: TensorRT and the device.
        stream: on which all of them run.
        cuda_graphs: whether each keeps CUDA graphs.
        stack: releases their memory.

    Raises:
        RuntimeError: too little memory.
    """
    tensorrt = library.tensorrt
    num_profiles = tensorrt.num_profiles(engine)
    memory: Optional[DeviceMemory] = None
    if num_profiles > 1:
        memory = DeviceMemory(cuda)
        stack.callback(memory.free)
        memory.reserve(tensorrt.context_memory_size(engine))
    opened = []
    for index in range(num_profiles):
        context = tensorrt.new_context(engine, has_memory=memory is None)
        if context is None:
            raise RuntimeError(
                f"{tensorrt.name}: expected memory for an execution context, found too little; use a smaller "
                "profile or free the GPU"
            )
        if memory is not None:
            tensorrt.set_context_memory(context, memory.address, memory.num_bytes)
            tensorrt.select_profile(context, index, cuda.stream_address(stream))
        limits = {name: tensorrt.profile_shapes(engine, name, index) for name in inputs}
        opened.append(ProfileContext(context, limits, GraphCache() if cuda_graphs else None))
    return opened
