"""What of an engine's time is spent in dense layers."""

import re
from collections.abc import Collection, Mapping
from typing import Optional

_REFORMAT = "Reformatting CopyNode"
_DENSE_NODE = re.compile(r"(?<!\S)/\S*(?:Conv|ConvTranspose|Gemm|MatMul)(?:_\d+)?(?!\S)")


def not_dense_share(times: Mapping[str, float], nodes: Collection[str]) -> Optional[float]:
    """Return the share of the layers' time in layers without a convolution or matrix product, 0 to 1.

    Args:
        times: ms by the layer's name, as ``EngineSession.layer_times`` returns them.
        nodes: the ONNX nodes that are dense, ``dense_flops``'s. A node inside a compiled region counts with the region:
            not dense.
    """
    total = sum(times.values())
    dense = sum(ms for name, ms in times.items() if _is_dense(name, nodes))
    return 1 - dense / total if total else None


def dense_nodes(times: Mapping[str, float]) -> set[str]:
    """Return the dense ONNX nodes that the layers' names name, where the ONNX itself is not at hand."""
    return {node for layer in times for node in _DENSE_NODE.findall(layer)}


def _is_dense(layer: str, nodes: Collection[str]) -> bool:
    parts = (node for part in layer.split(" + ") for node in part.split(" || "))
    return not layer.startswith(_REFORMAT) and any(node in nodes for node in parts)
