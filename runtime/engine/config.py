"""What an engine is asked to be."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from numbers import Integral
from typing import Any, Optional

from runtime.messages import shown
from runtime.ranges import MAX_BATCH, MAX_SIZE, MAX_WORKSPACE_MIB

PRECISIONS = ("fp32", "tf32", "fp16", "int8")
# What to do about an ONNX without a good engine: build it, refuse it, or build in any case.
REBUILD = ("auto", "never", "always")
MIB = 1 << 20
_LONGEST_DIMENSION = 2**31 - 1

Range = tuple[int, int, int]
Shapes = tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]


@dataclass(frozen=True)
class EngineConfig:
    """How an engine is built.

    Attributes:
        batch: least, best and largest number of images at once. The engine is tuned for the best.
        profiles: the same for each part of that range that the engine is tuned for by itself; the parts follow each
            other without a gap. None: one image alone, and two and more, where ``batch`` has both. ``batch`` is the
            whole range where they are given, with the best of the last.
        height, width: the same in px for a model of dynamic size; None for a fixed size.
        shapes: least, best and largest shape of inputs by name, instead of ``batch``, ``height`` and ``width``.
        precision: ``fp32``, ``tf32`` (FP32 whose convolutions round their inputs to 10 bits), ``fp16``, or ``int8``:
            what the file has in INT8, and the rest in FP16.
        workspace_mib: most memory that layers may use while they run, MiB; None leaves it to TensorRT.
        tactic_sources: libraries that kernels may come from, e.g. ``("cublas", "cudnn")``; None leaves it to
            TensorRT, ``()`` are its own kernels alone.
    """

    batch: Range = (1, 8, 8)
    profiles: Optional[tuple[Range, ...]] = None
    height: Optional[Range] = None
    width: Optional[Range] = None
    shapes: tuple[tuple[str, Shapes], ...] = ()
    precision: str = "fp16"
    workspace_mib: Optional[int] = None
    tactic_sources: Optional[tuple[str, ...]] = None

    def __post_init__(self) -> None:
        if self.precision not in PRECISIONS:
            raise ValueError(
                f"--precision: expected one of {', '.join(PRECISIONS)}, found {self.precision!r}"
            )
        for name in ("batch", "height", "width"):
            value = getattr(self, name)
            if value is not None:
                object.__setattr__(self, name, _checked_range(name, value))
        profiles = _default_profiles(self.batch, self.shapes) if self.profiles is None else self.profiles
        object.__setattr__(self, "profiles", _checked_profiles(profiles))
        object.__setattr__(self, "batch", (self.profiles[0][0], self.profiles[-1][1], self.profiles[-1][2]))
        if self.workspace_mib is not None and not 1 <= self.workspace_mib <= MAX_WORKSPACE_MIB:
            raise ValueError(
                f"--workspace: expected 1 to {MAX_WORKSPACE_MIB} MiB, found {self.workspace_mib}"
            )
        if self.tactic_sources is not None:
            object.__setattr__(self, "tactic_sources", tuple(sorted(s.lower() for s in self.tactic_sources)))
        shapes = tuple((name, _checked_shapes(name, value)) for name, value in self.shapes)
        object.__setattr__(self, "shapes", shapes)

    @property
    def follows_plan(self) -> bool:
        """Whether a precision plan says what stays FP32."""
        return self.precision in ("fp16", "int8")

    def to_dict(self) -> dict[str, Any]:
        """Return what ``from_dict`` reads; JSON can hold it."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> "EngineConfig":
        """Make a config from ``to_dict``'s result; names that this version does not know are left out.

        Raises:
            ValueError: a value is of another type or out of range; names it.
        """
        known = {f.name for f in fields(cls)}
        values = {name: value for name, value in data.items() if name in known}
        for name, value in values.items():
            if not _is_of_json(name, value):
                raise ValueError(f"config.{name}: expected {_JSON[name]}, found {shown(value)}")
        # An engine of a version that did not know several profiles has one.
        values.setdefault("profiles", (values.get("batch", cls.batch),))
        return cls(**values)


# What stands in JSON for a field; what its values may be, the fields say themselves.
_JSON = {
    "batch": "a list",
    "profiles": "a list of lists",
    "height": "a list or null",
    "width": "a list or null",
    "shapes": "a list of names and shapes",
    "precision": "a string",
    "workspace_mib": "a whole number or null",
    "tactic_sources": "a list of strings or null",
}


def _is_of_json(name: str, value: Any) -> bool:
    if value is None:
        return "null" in _JSON[name]
    if name == "workspace_mib":
        return type(value) is int
    if name == "precision":
        return isinstance(value, str)
    if name == "tactic_sources":
        return isinstance(value, (list, tuple)) and all(isinstance(v, str) for v in value)
    if name == "shapes":
        return isinstance(value, (list, tuple)) and all(map(_is_named_shapes, value))
    if name == "profiles":
        return isinstance(value, (list, tuple)) and all(isinstance(v, (list, tuple)) for v in value)
    return isinstance(value, (list, tuple))


def _is_named_shapes(value: Any) -> bool:
    is_pair = isinstance(value, (list, tuple)) and len(value) == 2
    return is_pair and isinstance(value[0], str) and isinstance(value[1], (list, tuple))


def _whole_numbers(values: Any) -> Optional[tuple[int, ...]]:
    """Return Python's numbers of Python's or NumPy's whole ones; None where there are others."""
    if not isinstance(values, Sequence) or isinstance(values, str):
        return None
    if not all(isinstance(v, Integral) and not isinstance(v, bool) for v in values):
        return None
    return tuple(map(int, values))


def _checked_range(name: str, value: Any) -> Range:
    numbers = _whole_numbers(value)
    if numbers is None or len(numbers) != 3 or numbers[0] < 1 or list(numbers) != sorted(numbers):
        found = " ".join(map(str, numbers)) if numbers is not None else shown(value)
        raise ValueError(f"{name}: expected three numbers of at least 1, MIN <= OPT <= MAX, found {found}")
    most = MAX_BATCH if name in ("batch", "--profiles") else MAX_SIZE
    if numbers[2] > most:
        raise ValueError(f"{name}: expected numbers from 1 to {most}, found {numbers[2]}")
    return numbers


def _default_profiles(batch: Range, shapes: Any) -> tuple[Range, ...]:
    """Return one image alone, and the rest: what is tuned for several is slower with one."""
    low, best, high = batch
    if low > 1 or high == 1 or shapes:
        return (batch,)
    return (1, 1, 1), (2, max(2, best), high)


def _checked_profiles(profiles: Any) -> tuple[Range, ...]:
    checked = tuple(_checked_range("--profiles", value) for value in profiles)
    follows = all(after[0] == before[2] + 1 for before, after in zip(checked, checked[1:]))
    if not checked or not follows:
        raise ValueError(
            "--profiles: expected ranges of batches that follow each other without a gap, such as 1 2:4:8, found "
            + (" ".join(":".join(map(str, value)) for value in checked) or "none")
        )
    return checked


def _checked_shapes(name: str, value: Any) -> Shapes:
    if len(value) != 3:
        raise ValueError(f"--shape {name}: expected three shapes, MIN, OPT and MAX, found {len(value)}")
    shapes = [_whole_numbers(shape) for shape in value]
    if None in shapes:
        raise ValueError(f"--shape {name}: expected shapes of whole numbers, found {shown(value)}")
    low, best, high = shapes
    ordered = len(low) == len(best) == len(high) and all(a <= b <= c for a, b, c in zip(low, best, high))
    if not ordered:
        raise ValueError(
            f"--shape {name}: expected MIN <= OPT <= MAX in every dimension, found {low}, {best}, {high}"
        )
    if max((*high, 0)) > _LONGEST_DIMENSION or min((*low, 1)) < 0:
        raise ValueError(
            f"--shape {name}: expected numbers from 0 to {_LONGEST_DIMENSION}, found {low}, {high}"
        )
    return low, best, high
