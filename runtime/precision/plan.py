"""The precision plan: which nodes of an ONNX stay in FP32 where the rest runs in FP16, and why.

The plan decides for every node but the operators that are FP32 in any plan (``runtime.graphs.operators``); in a
weakly typed network the plugins that take FP16 logits read them as they are. TensorRT's weakly typed builders apply it
layer by layer, everything that is strongly typed gets it as casts in the file (``runtime.precision.typed``).
"""

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any, Optional, Union

from runtime.documents import parsed
from runtime.files import write_whole
from runtime.messages import shown
from runtime.reading import SMALL, bounded_bytes

if TYPE_CHECKING:
    import onnx

FORMAT = 1
SUFFIX = ".plan.json"
_REMEDY = "make one with `python -m runtime.precision plan MODEL.onnx`"
_NUM_SHOWN = 3


@dataclass(frozen=True)
class PrecisionGroup:
    """Nodes that stay FP32 for one reason.

    Attributes:
        name: what they do together, e.g. ``RoI coordinates``, or their scope, e.g. ``backbone/layer2``.
        reason: one sentence.
        nodes: names of ONNX nodes, in the graph's order.
    """

    name: str
    reason: str
    nodes: tuple[str, ...]


@dataclass(frozen=True)
class PrecisionPlan:
    """The nodes that stay FP32, in groups. Every other node that computes on floats is FP16; see the module.

    Attributes:
        groups: their names differ, and no node is in two of them.
    """

    groups: tuple[PrecisionGroup, ...]

    def __post_init__(self) -> None:
        names = [group.name for group in self.groups]
        nodes = [node for group in self.groups for node in group.nodes]
        for what, values in (("group names", names), ("nodes", nodes)):
            twice = [value for value, count in Counter(values).items() if count > 1]
            if twice:
                raise ValueError(
                    f"precision plan: expected {what} to be in it once, found {_listed(twice)} more than once; "
                    f"{_REMEDY}"
                )

    @property
    def nodes(self) -> frozenset[str]:
        """The names of all nodes that stay FP32."""
        return frozenset(node for group in self.groups for node in group.nodes)

    def to_json(self) -> str:
        """Return the plan as JSON text."""
        groups = [{"name": g.name, "reason": g.reason, "nodes": list(g.nodes)} for g in self.groups]
        return json.dumps({"format": FORMAT, "groups": groups}, indent=2) + "\n"

    @classmethod
    def from_json(cls, text: Union[str, bytes]) -> "PrecisionPlan":
        """Read what ``to_json`` wrote.

        Raises:
            ValueError: not JSON, of another format, or a field is missing or of another type.
        """
        try:
            content = parsed(text)
        except ValueError as error:
            raise ValueError(f"precision plan: {error}; {_REMEDY}") from error
        found = content.get("format") if isinstance(content, dict) else None
        if found != FORMAT:
            raise ValueError(
                f"precision plan: expected an object of format {FORMAT}, found format {shown(found)}; {_REMEDY}"
            )
        groups = _field(content, "groups", list, "the plan")
        return cls(tuple(_group(group, f"group {index}") for index, group in enumerate(groups)))

    def save(self, path: Union[str, Path]) -> None:
        """Write the plan; a file that is there stays whole until the new one is.

        Raises:
            OSError: it cannot be written.
        """
        write_whole(path, self.to_json().encode("utf-8"))

    @classmethod
    def load(cls, path: Union[str, Path]) -> "PrecisionPlan":
        """Read a plan from a file.

        Raises:
            FileNotFoundError: there is none.
            ValueError: it is not a plan of this format; the message names the file.
        """
        path = Path(path)
        if not path.is_file():
            raise FileNotFoundError(f"precision plan {path}: expected a file, found nothing there; {_REMEDY}")
        try:
            return cls.from_json(bounded_bytes(path, SMALL, _REMEDY))
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error


def plan_path(model_path: Union[str, Path]) -> Path:
    """Return where a model's plan lies: ``out/maskrcnn.onnx`` -> ``out/maskrcnn.plan.json``."""
    return Path(model_path).with_suffix(SUFFIX)


def plan_sha256(plan: Optional[PrecisionPlan]) -> Optional[str]:
    """Return the SHA-256 of a plan's JSON, None without a plan."""
    return None if plan is None else sha256(plan.to_json().encode()).hexdigest()


def check_plan(plan: PrecisionPlan, model: "onnx.ModelProto") -> None:
    """Refuse a plan that was made for another model.

    Raises:
        ValueError: names the first nodes that the model has not got, or has several of.
    """
    known = Counter(node.name for node in model.graph.node)
    twice = [node for node in plan.nodes if known[node] > 1]
    if twice:
        raise ValueError(
            f"precision plan: expected nodes with names of their own, found several called {_listed(sorted(twice))}; "
            "give each of the model's nodes a name, e.g. its first output's, and save the file"
        )
    unknown = [node for group in plan.groups for node in group.nodes if node not in known]
    if unknown:
        raise ValueError(
            f"precision plan: expected names of the model's {len(model.graph.node)} nodes, found {len(unknown)} "
            f"others: {_listed(unknown)}; the plan is another model's, {_REMEDY}"
        )


def _group(content: Any, where: str) -> PrecisionGroup:
    nodes = _field(content, "nodes", list, where)
    if not all(isinstance(node, str) and node for node in nodes):
        raise ValueError(f"precision plan: {where}, nodes: expected names, found {shown(nodes)}; {_REMEDY}")
    return PrecisionGroup(
        name=_field(content, "name", str, where),
        reason=_field(content, "reason", str, where),
        nodes=tuple(nodes),
    )


def _field(content: Any, name: str, kind: type, where: str) -> Any:
    value = content.get(name) if isinstance(content, Mapping) else None
    if not isinstance(value, kind):
        raise ValueError(
            f"precision plan: {where}: expected a field {name!r} that is a {kind.__name__}, found "
            f"{shown(value)}; {_REMEDY}"
        )
    return value


def _listed(names: list[str]) -> str:
    more = len(names) - _NUM_SHOWN
    return ", ".join(names[:_NUM_SHOWN]) + (f" and {more} more" if more > 0 else "")
