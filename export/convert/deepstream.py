"""DeepStream's ``nvinfer``: its configuration, the ONNX with one input, and the parser of its outputs."""

from pathlib import Path
from typing import Any, Optional

import numpy as np
import onnx
from onnx import TensorProto, helper

from export.convert.source import Made, Options, Source, notes_on_keypoints, word
from export.convert.trtexec import lowered
from export.graft.builder import FLOAT, Builder
from runtime.files import write_whole
from runtime.graphs.load import save_model
from runtime.host.preprocess import normalisation_tables
from runtime.metadata import ModelMetadata
from runtime.transforms import Fit, Resize

MODEL, CONFIG, LABELS = "model.onnx", "config_infer_primary_maskrcnn.txt", "labels.txt"
PARSER, LIBRARY = "nvdsinfer_maskrcnn.cpp", "libnvdsinfer_maskrcnn.so"
PARSER_SOURCE = Path(__file__).with_name("deepstream_parser.cpp")
MASK_PARSER, BOX_PARSER = "NvDsInferParseCustomMaskRCNN", "NvDsInferParseCustomMaskRCNNBoxes"
_COLOR_FORMATS = {"rgb": 0, "bgr": 1}
_PREFIX = "deepstream"
_MASK_REMEDIES = {
    "full": "export it with `--masks crop`",
    "grid": "those of a Mask R-CNN alone lie so; for masks on a grid over the whole input take --for triton",
}


def convert(source: Source, folder: Path, options: Options) -> Made:
    """Write configuration, ONNX, labels and the parser's source."""
    metadata = source.metadata
    size = _checked(source, options)
    given = scaling(metadata)
    graph = _with_one_input(lowered(source, options, "deepstream"), metadata, size)
    save_model(graph, folder / MODEL)
    write_whole(folder / CONFIG, configuration(metadata, size, options, given).encode())
    write_whole(folder / LABELS, "".join(f"{name}\n" for name in metadata.classes).encode())
    write_whole(folder / PARSER, PARSER_SOURCE.read_bytes())
    files = {
        CONFIG: "what `nvinfer` reads",
        MODEL: "the ONNX, with a node for each plugin and `images` as its one input",
        LABELS: "the classes",
        PARSER: "the parser; not compiled here",
    }
    return Made(files, _commands(folder, options), _notes(metadata, size))


def _commands(folder: Path, options: Options) -> tuple[str, ...]:
    # Linked against it, so that nvinfer loads the plugins with the parser.
    compile_parser = (
        "g++ -std=c++17 -O2 -shared -fPIC -I/opt/nvidia/deepstream/deepstream/sources/includes "
        f"-I/usr/local/cuda/include {word(folder / PARSER)} -o {word(folder / LIBRARY)} "
        f"-Wl,--no-as-needed {word(options.plugins.absolute())}"
    )
    config = word(folder / CONFIG)
    run = (
        "gst-launch-1.0 filesrc location=video.mp4 ! qtdemux ! h264parse ! nvv4l2decoder ! m.sink_0 nvstreammux name=m "
        f"batch-size=1 width=1920 height=1080 ! nvinfer config-file-path={config} ! nvvideoconvert ! nvdsosd "
        "display-mask=1 ! nvvideoconvert ! nvv4l2h264enc ! h264parse ! qtmux ! filesink location=out.mp4"
    )
    return compile_parser, run


def _notes(metadata: ModelMetadata, size: tuple[int, int]) -> tuple[str, ...]:
    notes = [
        "The parser was not compiled here, and DeepStream has not been run: its SDK is needed for both.",
        "nvinfer resizes on the GPU, and fills with black what an image leaves free; mmdet resizes as OpenCV does and "
        "fills after it has normalised. Detections are close to those of `runtime.infer`, not equal.",
    ]
    step = metadata.resize
    fits = isinstance(step, (Fit, Resize)) and _resizes_to(step, size)
    if not fits:
        notes.append(
            f"The test pipeline does not fit images into {size[0]}x{size[1]}, which nvinfer does: {step}; objects have "
            "another size than the model expects of them."
        )
    return (*notes, *notes_on_keypoints(metadata, "The parser gives nvinfer boxes, and masks"))


def _resizes_to(step: Any, size: tuple[int, int]) -> bool:
    """Return whether a step makes of any image the largest that fits into the size."""
    return step.size(size[0] * 2, size[1] * 2) == size and step.size(size[0], size[1] * 2)[1] == size[1]


def _checked(source: Source, options: Options) -> tuple[int, int]:
    """Return the (height, width) of the network's input, px.

    Raises:
        ValueError: nvinfer cannot have the model.
    """
    metadata = source.metadata
    if metadata.masks not in ("crop", "none"):
        raise ValueError(
            f"model {source.path}: expected masks in their boxes for nvinfer or none, found masks {metadata.masks}; "
            + _MASK_REMEDIES[metadata.masks]
        )
    if metadata.channels != 3:
        raise ValueError(f"model {source.path}: expected 3 channels for nvinfer, found {metadata.channels}")
    if metadata.input == "uint8_nhwc":
        raise ValueError("--layout: expected nchw for nvinfer, found nhwc; leave it out")
    sizes = metadata.size, _one(options.height), _one(options.width)
    if metadata.size is None and None in sizes[1:]:
        raise ValueError(
            f"model {source.path}: expected one size of the network's input, which nvinfer needs, found a model of any "
            "size; give --size HxW"
        )
    return metadata.size or (sizes[1], sizes[2])


def _one(limits: Optional[tuple[int, int, int]]) -> Optional[int]:
    return limits[0] if limits and len(set(limits)) == 1 else None


def scaling(metadata: ModelMetadata) -> tuple[float, tuple[float, ...]]:
    """Return ``net-scale-factor`` and ``offsets`` with which nvinfer makes the network's input, to the last bit.

    It computes ``factor * (pixel - offset)`` in float32, with one factor for all channels.

    Raises:
        ValueError: some pixel becomes another number.
    """
    if metadata.input != "float32":
        return 1.0, (0.0, 0.0, 0.0)
    tables = normalisation_tables(metadata)
    pixels = np.arange(256, dtype=np.float32)
    offsets = np.array(metadata.mean, np.float32)
    factor = np.float32(1 / metadata.std[0])
    if not np.array_equal(factor * (pixels - offsets[:, None]), tables):
        raise ValueError(
            "net-scale-factor, offsets: expected one factor that normalises every pixel as the model's test pipeline, "
            f"found mean {', '.join(map(str, metadata.mean))} and std {', '.join(map(str, metadata.std))}, which are "
            "none to the last bit; give --input uint8, which puts the normalisation into the graph"
        )
    return float(factor), tuple(float(v) for v in offsets)


def _with_one_input(model: Any, metadata: ModelMetadata, size: tuple[int, int]) -> Any:
    """Make ``image_sizes`` the whole input, and ``num_dets`` (B, 1): nvinfer feeds images alone, and has no scalars."""
    graph = model.graph
    made = onnx.GraphProto()
    builder = Builder(made, _PREFIX)
    batch = builder.op("Slice", builder.op("Shape", "images"), builder.ints(0), builder.ints(1))
    shape = builder.op("Concat", batch, builder.ints(2), axis=0)
    sizes = builder.op("Expand", [list(map(float, size))], shape)
    made.node.append(helper.make_node("Identity", [sizes], ["image_sizes"], f"{_PREFIX}/image_sizes"))
    nodes = list(graph.node)
    del graph.node[:]
    graph.node.extend([*made.node, *nodes])
    graph.initializer.extend(made.initializer)
    images = next(value for value in graph.input if value.name == "images")
    batch_dim = images.type.tensor_type.shape.dim[0].dim_param or "batch"
    del graph.input[:]
    graph.input.append(helper.make_tensor_value_info("images", FLOAT, [batch_dim, 3, *size]))
    _unsqueeze_counts(graph, batch_dim)
    if metadata.input != "float32":
        _take_floats(graph)
    return model


def _take_floats(graph: Any) -> None:
    """Take out the cast of pixels that come as floats already."""
    cast = next(node for node in graph.node if node.op_type == "Cast" and node.input[0] == "images")
    cast.op_type = "Identity"
    del cast.attribute[:]


def _unsqueeze_counts(graph: Any, batch: str) -> None:
    producer = next(node for node in graph.node if "num_dets" in node.output)
    index = list(producer.output).index("num_dets")
    producer.output[index] = f"{_PREFIX}/num_dets"
    for node in graph.node:
        node.input[:] = [f"{_PREFIX}/num_dets" if name == "num_dets" else name for name in node.input]
    axes = helper.make_tensor(f"{_PREFIX}/axes", TensorProto.INT64, [1], [1])
    graph.initializer.append(axes)
    graph.node.append(
        helper.make_node(
            "Unsqueeze", [f"{_PREFIX}/num_dets", axes.name], ["num_dets"], f"{_PREFIX}/num_dets_column"
        )
    )
    value = next(value for value in graph.output if value.name == "num_dets")
    value.CopyFrom(helper.make_tensor_value_info("num_dets", TensorProto.INT32, [batch, 1]))


def configuration(
    metadata: ModelMetadata, size: tuple[int, int], options: Options, given: tuple[float, tuple[float, ...]]
) -> str:
    """Return the text of nvinfer's configuration. Paths are relative to its file."""
    factor, offsets = given
    has_masks = metadata.masks != "none"
    order = metadata.color_order if metadata.input == "float32" else "bgr"
    entries: dict[str, Any] = {
        "gpu-id": 0,
        "onnx-file": MODEL,
        "model-engine-file": f"{MODEL}_b{options.batch[2]}_gpu0_{options.precision}.engine",
        "labelfile-path": LABELS,
        "custom-lib-path": LIBRARY,
        ("parse-bbox-instance-mask-func-name" if has_masks else "parse-bbox-func-name"): (
            MASK_PARSER if has_masks else BOX_PARSER
        ),
        "network-type": 3 if has_masks else 0,
        "output-instance-mask": int(has_masks),
        "segmentation-threshold": metadata.mask_threshold,
        "num-detected-classes": len(metadata.classes),
        "infer-dims": f"3;{size[0]};{size[1]}",
        "batch-size": options.batch[2],
        # FP32: FP16 without a plan spoils coordinates.
        "network-mode": 0,
        "model-color-format": _COLOR_FORMATS[order],
        "net-scale-factor": repr(factor),
        "offsets": ";".join(repr(v) for v in offsets),
        "maintain-aspect-ratio": int(_keeps_ratio(metadata)),
        "symmetric-padding": 0,
        "scaling-filter": 1,
        # NMS is in the graph.
        "cluster-mode": 4,
        "process-mode": 1,
        "gie-unique-id": 1,
    }
    lines = ["[property]", *(f"{key}={value}" for key, value in entries.items())]
    lines += ["", "[class-attrs-all]", f"pre-cluster-threshold={metadata.score_threshold}"]
    return "\n".join(lines) + "\n"


def _keeps_ratio(metadata: ModelMetadata) -> bool:
    step = metadata.resize
    return not isinstance(step, Resize) or step.keep_ratio
