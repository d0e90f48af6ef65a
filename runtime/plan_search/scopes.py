"""Parts of a model that a search moves from FP16 to FP32 together."""

from collections.abc import Sequence

# Nodes of a group where names say nothing: about two layers with what follows them.
_RUN_LENGTH = 8


def scopes(names: Sequence[str]) -> dict[str, str]:
    """Return each node's group, from names that follow the modules as PyTorch's exporter writes them.

    ``/backbone/layer1/layer1.0/conv1/Conv`` and ``/backbone/layer1/layer1.0/Add`` are both in
    ``backbone/layer1/layer1.0``: a module that has no modules inside counts to the one around it. Where most names have
    no modules (``Conv_12``), neighbours are a group, called after the first and the last.

    Args:
        names: node names in the graph's order.
    """
    modules = {name: tuple(part for part in name.split("/") if part)[:-1] for name in names}
    if sum(bool(path) for path in modules.values()) * 2 < len(names):
        return _runs(names)
    containers = {path[:depth] for path in modules.values() for depth in range(len(path))}
    scoped = {}
    for name, path in modules.items():
        inside = path if path in containers else path[:-1]
        scoped[name] = "/".join(inside or path) or "outside any module"
    return scoped


def _runs(names: Sequence[str]) -> dict[str, str]:
    runs = [names[start : start + _RUN_LENGTH] for start in range(0, len(names), _RUN_LENGTH)]
    return {name: f"{run[0]} ... {run[-1]}" for run in runs for name in run}
