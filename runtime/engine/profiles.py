"""Which shapes an engine takes: the least, best and largest of each optimisation profile."""

from collections.abc import Sequence
from dataclasses import replace

from runtime.engine.config import EngineConfig, Range, Shapes
from runtime.host.preprocess import typical_sizes
from runtime.metadata import ModelMetadata

_BATCH, _HEIGHT, _WIDTH = 0, 2, 3


def profile_shapes(name: str, shape: Sequence[int], config: EngineConfig, batch: Range) -> Shapes:
    """Return the least, best and largest shape of an input in one profile.

    Args:
        name: of the input.
        shape: its dimensions in the network, -1 where free: the first is the batch, the third and fourth of four are
            height and width.
        config: the ranges of everything but the batch.
        batch: the profile's.

    Raises:
        ValueError: a free dimension has no range, or a given shape does not fit.
    """
    given = dict(config.shapes)
    if name in given:
        return _fitting(name, shape, given[name])
    ranges = {_BATCH: batch}
    if len(shape) == 4:
        ranges.update({_HEIGHT: config.height, _WIDTH: config.width})
    columns = []
    for axis, size in enumerate(shape):
        limits = (size,) * 3 if size >= 0 else ranges.get(axis)
        if limits is None:
            option = "--size" if axis in ranges else f"--shape {name}=MIN,OPT,MAX"
            raise ValueError(
                f"input {name}: expected a range for the free dimension {axis} of {_text(shape)}, found "
                f"none; give {option}"
            )
        columns.append(limits)
    low, best, high = (tuple(column[i] for column in columns) for i in range(3))
    return low, best, high


def with_default_sizes(config: EngineConfig, metadata: ModelMetadata) -> EngineConfig:
    """Give a model of dynamic size the range that its own resize rule needs, where the config names none."""
    if metadata.size is not None or config.height is not None or config.shapes:
        return config
    sizes = typical_sizes(metadata)
    if sizes is None:
        return config
    (low, high), typical = sizes
    step = metadata.size_divisor
    # A very long image is small in the other direction; either orientation occurs.
    least = tuple(min(max(v, 2 * step), t) for v, t in zip(low, typical))
    return replace(config, height=(least[0], typical[0], high[0]), width=(least[1], typical[1], high[1]))


def _fitting(name: str, shape: Sequence[int], shapes: Shapes) -> Shapes:
    for candidate in shapes:
        if len(candidate) != len(shape) or any(s >= 0 and s != c for s, c in zip(shape, candidate)):
            raise ValueError(f"--shape {name}: expected shapes like {_text(shape)}, found {_text(candidate)}")
    return shapes


def _text(shape: Sequence[int]) -> str:
    return "x".join("?" if size < 0 else str(size) for size in shape)
