"""From a model to an ONNX graph: trace, add the operators' bodies, simplify, check."""

import patches as patches_package  # isort: skip  makes mmdet importable without mmcv's compiled operators

import io
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Optional, Union

import mmcv
import mmdet
import mmengine
import onnx
import torch
from mmdet.models.detectors import TwoStageDetector
from onnxsim import simplify
from torch import Tensor, nn

from export.functions import DOMAIN_VERSION, functions_for
from export.weights import DetachedWeights, detach
from patches import applied, patches_for
from patches.families import family_of
from patches.operators import paste_masks
from patches.tracing import dynamic_size as tracing_dynamic_size
from runtime.graphs.operators import DOMAIN
from runtime.metadata import KEY, ModelMetadata

MIN_OPSET = 16
MAX_OPSET = 20
# It joins the two short means of patches.group_norm into a long one.
INEXACT_OPTIMIZERS = ["fuse_consecutive_reduce"]


@dataclass(frozen=True)
class GraphOptions:
    """What the graph looks like.

    Attributes:
        size: (height, width) in px that the trace runs at; the graph's own unless ``dynamic_size``.
        dynamic_size: keep height and width dynamic.
        masks: ``crop``, ``full`` or ``none``.
        opset: of ONNX's own operators.
        channels: of the images.
    """

    size: tuple[int, int]
    dynamic_size: bool = False
    masks: str = "crop"
    opset: int = MIN_OPSET
    channels: int = 3

    def __post_init__(self) -> None:
        if not MIN_OPSET <= self.opset <= MAX_OPSET:
            raise ValueError(
                f"--opset: expected {MIN_OPSET} to {MAX_OPSET}, found {self.opset}: RoiAlign's half_pixel mode begins "
                f"at opset {MIN_OPSET}, and PyTorch's TorchScript exporter ends at {MAX_OPSET}"
            )


class DetectorGraph(nn.Module):
    """The function that is traced: the patched model, its outputs in the order of the contract.

    Args of ``forward``:
        images: (B, C, H, W) float32, normalised and padded bottom and right.
        image_sizes: (B, 2) float32, each image's (height, width) inside its padding in px.

    Returns of ``forward``:
        num_dets (B,) int32, dets (B, K, 5) float32, labels (B, K) int32 and, unless ``masks`` is ``none``, masks:
        (B, K, h, w) float32 probabilities for ``crop``, (B, K, H, W) uint8 for ``full``.
    """

    def __init__(self, model: TwoStageDetector, masks: str) -> None:
        super().__init__()
        self.model = model
        self.masks = masks

    def forward(self, images: Tensor, image_sizes: Tensor) -> tuple[Tensor, ...]:
        found = self.model.predict(images, image_sizes)
        dets = torch.cat([found.boxes, found.scores[..., None]], dim=-1)
        outputs = (found.num_dets, dets, found.labels)
        if self.masks == "none":
            return outputs
        if self.masks == "crop":
            return (*outputs, found.masks)
        threshold = family_of(self.model).facts(self.model).mask_threshold
        return (*outputs, paste_masks(found.masks, found.boxes, images, threshold=threshold))


def onnx_from_model(
    model: TwoStageDetector, options: GraphOptions, notes: Optional[list[str]] = None
) -> onnx.ModelProto:
    """Trace the patched model and add the portable operators' bodies.

    Args:
        model: in evaluation mode; it is as it was afterwards.
        options: see ``GraphOptions``.
        notes: gets a line for each place where code of one's own decides in Python by a tensor's value.

    Raises:
        patches.families.UnsupportedModelError: before anything is traced.
    """
    buffer = io.BytesIO()
    _trace(model, options, buffer, notes)
    return _completed(onnx.load_from_string(buffer.getvalue()), options)


def detached_onnx_from_model(
    model: TwoStageDetector, options: GraphOptions, folder: Path, notes: Optional[list[str]] = None
) -> tuple[onnx.ModelProto, DetachedWeights]:
    """Do the same with a model of more than 2 GB, whose weights go into files of ``folder``."""
    path = folder / "traced.onnx"
    _trace(model, options, str(path), notes)
    graph = onnx.load(path, load_external_data=False)
    weights = detach(graph, folder)
    return _completed(graph, options), weights


def _trace(
    model: TwoStageDetector,
    options: GraphOptions,
    target: Union[str, io.BytesIO],
    notes: Optional[list[str]],
) -> None:
    patches = patches_for(model)
    device = next(model.parameters()).device
    images = torch.zeros(1, options.channels, *options.size, device=device)
    image_sizes = torch.tensor([options.size], dtype=torch.float32, device=device)
    with (
        applied(patches),
        tracing_dynamic_size(options.dynamic_size),
        torch.no_grad(),
        warnings.catch_warnings(record=True) as caught,
    ):
        # mmdet's Python checks of shapes look data-dependent to the tracer, and the exporter calls itself legacy.
        warnings.simplefilter("ignore")
        warnings.simplefilter("always", torch.jit.TracerWarning)
        torch.onnx.export(
            # In evaluation mode already: the exporter switches to it and afterwards back, for every module inside.
            DetectorGraph(model, options.masks).eval(),
            (images, image_sizes),
            target,
            dynamo=False,
            opset_version=options.opset,
            input_names=["images", "image_sizes"],
            output_names=_output_names(options.masks),
            dynamic_axes=_dynamic_axes(options),
            custom_opsets={DOMAIN: DOMAIN_VERSION},
        )
    if notes is not None:
        notes += _decisions(caught)


def _decisions(caught: Sequence[warnings.WarningMessage]) -> list[str]:
    """Return where code that is neither ours nor mmdet's turned tensors into Python values, a line for each place."""
    known = [Path(module.__file__).parent for module in (torch, mmcv, mmdet, mmengine, patches_package)]
    places = {
        (w.filename, w.lineno): None
        for w in caught
        if issubclass(w.category, torch.jit.TracerWarning)
        and not any(folder in Path(w.filename).parents for folder in (*known, Path(__file__).parent))
    }
    return [
        f"{file}:{line} decides in Python by a tensor's value: the file repeats what was decided while it was traced, "
        "for every image"
        for file, line in places
    ]


def _completed(graph: onnx.ModelProto, options: GraphOptions) -> onnx.ModelProto:
    """Add what the exporter leaves out: inputs, bodies, sizes."""
    _restore_image_sizes(graph)
    graph.functions.extend(functions_for(graph.graph.node, options.opset))
    _infer_output_sizes(graph, options)
    return graph


def _restore_image_sizes(model: onnx.ModelProto) -> None:
    """Put the input back that the exporter drops where boxes are not clipped: the contract is one for every model."""
    if all(value.name != "image_sizes" for value in model.graph.input):
        model.graph.input.append(
            onnx.helper.make_tensor_value_info("image_sizes", onnx.TensorProto.FLOAT, ["batch", 2])
        )


def _infer_output_sizes(model: onnx.ModelProto, options: GraphOptions) -> None:
    """Replace the names that the exporter invents for sizes it does not know by those that follow from the bodies."""
    inputs = {dim.dim_param for value in model.graph.input for dim in value.type.tensor_type.shape.dim}
    del model.graph.value_info[:]
    for output in model.graph.output:
        for dim in output.type.tensor_type.shape.dim:
            if dim.dim_param not in inputs:
                dim.Clear()
    inferred = onnx.shape_inference.infer_shapes(model, data_prop=True)
    del model.graph.output[:]
    model.graph.output.extend(inferred.graph.output)
    if options.masks == "full":
        # Inference does not see through Range; the canvas is the images' own size.
        images, masks = model.graph.input[0], model.graph.output[-1]
        for axis in (2, 3):
            masks.type.tensor_type.shape.dim[axis].CopyFrom(images.type.tensor_type.shape.dim[axis])


def simplified(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return the model with constants folded and shapes inferred.

    Raises:
        RuntimeError: onnxsim found that its result computes something else.
    """
    # Shapes come from the functions, through onnx. onnxsim itself mixes up two calls of one function with different
    # attributes (it took GroupedNMS's 1000 rows for the second call's 100), so it does not get to see the bodies.
    bare = onnx.shape_inference.infer_shapes(model, data_prop=True)
    functions = list(bare.functions)
    del bare.functions[:]
    result, matches = simplify(bare, skipped_optimizers=INEXACT_OPTIMIZERS)
    if not matches:
        raise RuntimeError(
            "onnxsim: expected an equal graph, found a different one; export with --no-simplify"
        )
    result.functions.extend(functions)
    return result


def with_metadata(model: onnx.ModelProto, metadata: ModelMetadata) -> onnx.ModelProto:
    """Return a copy of the model that carries the metadata and names its producer."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    onnx.helper.set_model_props(copy, {KEY: metadata.to_json()})
    copy.producer_name = "maskrcnn-deploy"
    copy.producer_version = metadata.versions.get("maskrcnn-deploy", "")
    return copy


def _output_names(masks: str) -> list[str]:
    names = ["num_dets", "dets", "labels"]
    return names if masks == "none" else [*names, "masks"]


def _dynamic_axes(options: GraphOptions) -> dict[str, dict[int, str]]:
    axes = {name: {0: "batch"} for name in ("images", "image_sizes", *_output_names(options.masks))}
    if options.dynamic_size:
        axes["images"].update({2: "height", 3: "width"})
        if options.masks == "full":
            axes["masks"].update({2: "height", 3: "width"})
    return axes


def num_nodes(model: onnx.ModelProto, op_type: Optional[str] = None) -> int:
    """Count the main graph's nodes, of one type or all."""
    return sum(op_type is None or node.op_type == op_type for node in model.graph.node)
