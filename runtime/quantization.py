"""What a quantized model says of its quantization: written into the ONNX by ``export.quantize``, read by ``runtime``.

It is one JSON object under the key ``maskrcnn_quantization`` of the file's ``metadata_props``, beside the model's own.
A file with Q/DQ operators and without it is as good: another tool, or training, has put them there.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import TYPE_CHECKING, Any, Optional

if TYPE_CHECKING:
    import onnx

KEY = "maskrcnn_quantization"
FORMAT = 1
QDQ_OPS = frozenset({"QuantizeLinear", "DequantizeLinear"})
_REMEDY = "quantize the float model again with `python -m export.quantize`"


@dataclass(frozen=True)
class Quantization:
    """How a model was quantized.

    Attributes:
        activations: ``int8`` (symmetric; outputs of layers stay float) or ``uint8`` (outputs too); ``as is`` where
            another tool has chosen them.
        method: how the ranges of activations were found: ``average``, ``minmax``, ``entropy`` or
            ``percentile``; ``as is`` likewise.
        num_layers: layers that are quantized: convolutions and fully connected layers, one for each weight.
        left_out: layers with weights that stay float, and why.
        num_images: that ranges were found on.
        images_sha256: of these images' bytes, in their order; None where none were needed.
        source_sha256: of the float model's file.
        reduce_range: weights have 7 bits.
        equalized: places between layers where channels were made of one size before.
        percentile: of ``percentile``, else None.
        versions: package name -> version.
    """

    activations: str
    method: str
    num_layers: int
    left_out: Mapping[str, str] = field(default_factory=dict)
    num_images: int = 0
    images_sha256: Optional[str] = None
    source_sha256: Optional[str] = None
    reduce_range: bool = False
    equalized: int = 0
    percentile: Optional[float] = None
    versions: Mapping[str, str] = field(default_factory=dict)

    def to_json(self) -> str:
        """Return the JSON that ``from_json`` reads."""
        return json.dumps({"format": FORMAT, **asdict(self)})

    @classmethod
    def from_json(cls, text: str) -> "Quantization":
        """Parse what ``to_json`` wrote.

        Raises:
            ValueError: not JSON, another format, or a missing field.
        """
        try:
            content = json.loads(text)
        except ValueError as error:
            raise ValueError(
                f"quantization record: expected JSON under {KEY!r}, found {text[:80]!r}; {_REMEDY}"
            ) from error
        found = content.get("format") if isinstance(content, dict) else None
        if found != FORMAT:
            raise ValueError(f"quantization record: expected format {FORMAT}, found {found!r}; {_REMEDY}")
        known = {f.name for f in fields(cls)}
        try:
            return cls(**{name: value for name, value in content.items() if name in known})
        except TypeError as error:
            raise ValueError(
                f"quantization record: expected all of its fields, found others ({error}); {_REMEDY}"
            ) from error


def quantization_from_properties(properties: Mapping[str, str]) -> Optional[Quantization]:
    """Return the record among a file's metadata, None where there is none.

    Raises:
        ValueError: it is malformed.
    """
    return Quantization.from_json(properties[KEY]) if KEY in properties else None


def quantization_of(model: "onnx.ModelProto") -> Optional[Quantization]:
    """Return the record of a model that ``export.quantize`` made, None for any other; see ``is_quantized``."""
    return quantization_from_properties({p.key: p.value for p in model.metadata_props})


def set_quantization(model: "onnx.ModelProto", record: Quantization) -> None:
    """Write the record into a model's metadata, in the place of one that is there."""
    kept: list[Any] = [p for p in model.metadata_props if p.key != KEY]
    others = {p.key: p.value for p in kept}
    del model.metadata_props[:]
    for key, value in {**others, KEY: record.to_json()}.items():
        model.metadata_props.add(key=key, value=value)


def is_quantized(model: "onnx.ModelProto") -> bool:
    """Return whether the main graph has operators of quantization, whoever put them there."""
    return any(node.op_type in QDQ_OPS or node.op_type.startswith("QLinear") for node in model.graph.node)
