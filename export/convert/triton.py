"""Triton's model repository: the model for tensors, and one in Python that takes image files."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Optional

from export.convert.source import Made, Options, Source, notes_on_keypoints, word
from runtime.contract import Tensor, contract_inputs, contract_outputs
from runtime.engine.sidecar import sidecar_path
from runtime.files import write_whole
from runtime.graphs.inlining import inlined
from runtime.graphs.load import save_model
from runtime.metadata import ModelMetadata

REPOSITORY = "models"
MODEL_SOURCE = Path(__file__).with_name("triton_model.py")
# How long a request waits for others to make a batch with.
_DELAY_US = 2000
_TYPES = {"float32": "TYPE_FP32", "int32": "TYPE_INT32", "uint8": "TYPE_UINT8", "int8": "TYPE_INT8"}
# Of the model in Python: name -> type, and dimensions behind the batch.
IMAGE_OUTPUTS = {
    "num_dets": ("TYPE_INT32", (1,)),
    "image_size": ("TYPE_INT32", (2,)),
    "boxes": ("TYPE_FP32", (-1, 4)),
    "scores": ("TYPE_FP32", (-1,)),
    "labels": ("TYPE_INT32", (-1,)),
    "rle": ("TYPE_STRING", (-1,)),
}


def convert(source: Source, folder: Path, options: Options) -> Made:
    """Write the repository: ``NAME`` for tensors, ``NAME_images`` for image files."""
    is_engine = source.model is None
    if source.sidecar is not None:
        options = replace(options, batch=source.sidecar.config.batch)
    images = f"{options.name}_images"
    files = _tensors(source, folder, options) | _images(source, folder, options, images)
    start = f"tritonserver --model-repository={word(folder / REPOSITORY)}"
    if is_engine:
        start += f" --backend-config=tensorrt,plugins={word(options.plugins)}"
    commands = (
        "pip install .  # this project, into the Python of the container, for the model of image files",
        start,
        f"curl -s localhost:8000/v2/models/{images}/config",
    )
    return Made(files, commands, _notes(images, is_engine, options, source.metadata))


def _notes(images: str, is_engine: bool, options: Options, metadata: ModelMetadata) -> tuple[str, ...]:
    notes = [
        f"`{options.name}` takes what `runtime.host.preprocess.prepare` makes; `{images}` takes image files. Each "
        "stands for itself: delete the folder of the one that you do not need.",
        "Requests with images of different sizes are no batch in the model for tensors unless they are padded to one.",
    ]
    if is_engine:
        notes += [
            "The plugin library registers its operators when it is loaded after TensorRT, as `plugins=` does; "
            "`LD_PRELOAD` loads it before, and the engine is then refused. It, and the engine, have to be of the "
            "TensorRT in the container. Triton itself has not been run with an engine.",
            f"`{images}` finds the library by `MASKRCNN_PLUGINS={options.plugins}` in Triton's environment.",
        ]
    return (*notes, *notes_on_keypoints(metadata, f"`{images}`, of image files"))


def _tensors(source: Source, folder: Path, options: Options) -> dict[str, str]:
    """Write the model for tensors."""
    place = Path(REPOSITORY) / options.name
    if source.model is None:
        file, what, outputs = "model.plan", "the engine", _engine_outputs(source)
        write_whole(folder / place / "1" / file, source.path.read_bytes())
    else:
        # Whatever else reads the file there (OpenVINO's accelerator) need not know local functions.
        file, what, outputs = "model.onnx", "the ONNX in standard operators alone", source.outputs
        save_model(inlined(source.model), folder / place / "1" / file)
    inputs = contract_inputs(source.metadata) if source.model is None else source.inputs
    profiles = 0 if source.sidecar is None else len(source.sidecar.config.profiles)
    text = tensor_config(options.name, inputs, outputs, options, profiles=profiles)
    write_whole(folder / place / "config.pbtxt", text.encode())
    return {str(place / "config.pbtxt"): "of the model for tensors", str(place / "1" / file): what}


def tensor_config(
    name: str, inputs: Mapping[str, Tensor], outputs: Mapping[str, Tensor], options: Options, *, profiles: int
) -> str:
    """Return the ``config.pbtxt`` of a model with these tensors, whose first dimension is the batch.

    Args:
        name: of the model.
        inputs, outputs: by name.
        options: of the conversion.
        profiles: of an engine, 0 for an ONNX. Triton takes the first alone unless it is told of the others.
    """
    instances = [f"count: {options.instances}", f"kind: {'KIND_GPU' if profiles else 'KIND_AUTO'}"]
    if profiles:
        instances.append("profile: [ " + ", ".join(f'"{index}"' for index in range(profiles)) + " ]")
    parts = [
        f'name: "{name}"',
        f'backend: "{"tensorrt" if profiles else "onnxruntime"}"',
        f"max_batch_size: {options.batch[2]}",
        *(_field("input", _entry(n, _TYPES[t.dtype], t.shape[1:])) for n, t in inputs.items()),
        *(_field("output", _entry(n, _TYPES[t.dtype], t.shape[1:])) for n, t in outputs.items()),
        _batching(options),
        _field("instance_group", instances),
    ]
    return "\n".join(parts) + "\n"


def _images(source: Source, folder: Path, options: Options, name: str) -> dict[str, str]:
    """Write the model for image files."""
    place = Path(REPOSITORY) / name
    version = folder / place / "1"
    write_whole(version / "model.py", MODEL_SOURCE.read_bytes())
    file = f"detector{source.path.suffix.lower()}"
    if source.model is None:
        write_whole(version / file, source.path.read_bytes())
        write_whole(sidecar_path(version / file), sidecar_path(source.path).read_bytes())
    else:
        save_model(source.model, version / file)
    write_whole(folder / place / "config.pbtxt", image_config(name, file, options, source).encode())
    return {
        str(place / "config.pbtxt"): "of the model for image files",
        str(place / "1" / "model.py"): "runs `runtime.Detector`",
        str(place / "1" / file): "what it opens",
    }


def image_config(name: str, file: str, options: Options, source: Source) -> str:
    """Return the ``config.pbtxt`` of the model for image files."""
    backend = "tensorrt" if source.model is None else "auto"
    parameters = {"model": file, "backend": backend, "min_score": "0"}
    outputs = {n: e for n, e in IMAGE_OUTPUTS.items() if n != "rle" or source.metadata.masks != "none"}
    kind = "KIND_GPU" if source.model is None else "KIND_CPU"
    parts = [
        f'name: "{name}"',
        'backend: "python"',
        f"max_batch_size: {options.batch[2]}",
        _field("input", _entry("image", "TYPE_STRING", (1,))),
        *(
            _field("output", [f'name: "{n}"', f"data_type: {t}", f"dims: {_dims(d)}"])
            for n, (t, d) in outputs.items()
        ),
        _batching(options),
        _field("instance_group", [f"count: {options.instances}", f"kind: {kind}"]),
        *(
            _field("parameters", [f'key: "{key}"', f'value {{ string_value: "{value}" }}'], repeated=False)
            for key, value in parameters.items()
        ),
    ]
    return "\n".join(parts) + "\n"


def _engine_outputs(source: Source) -> dict[str, Tensor]:
    """Return an engine's outputs; of ``--masks full`` their type depends on the release."""
    outputs = contract_outputs(source.metadata)
    if source.metadata.masks == "full":
        raise ValueError(
            f"model {source.path}: expected masks of an engine that Triton can be told the type of, found those of "
            "`--masks full`, which depends on the release; export it without"
        )
    return outputs


def _entry(name: str, kind: str, shape: Sequence[Optional[int]]) -> list[str]:
    if not shape:
        # Triton has no tensor of the batch alone.
        return [f'name: "{name}"', f"data_type: {kind}", "dims: [ 1 ]", "reshape { shape: [ ] }"]
    return [f'name: "{name}"', f"data_type: {kind}", f"dims: {_dims(-1 if v is None else v for v in shape)}"]


def _dims(values: Iterable[int]) -> str:
    return f"[ {', '.join(map(str, values))} ]"


def _field(name: str, lines: Iterable[str], *, repeated: bool = True) -> str:
    inside = "\n".join(f"    {line}" for line in lines)
    return f"{name} [\n  {{\n{inside}\n  }}\n]" if repeated else f"{name} {{\n{inside}\n}}"


def _batching(options: Options) -> str:
    return _field("dynamic_batching", [f"max_queue_delay_microseconds: {_DELAY_US}"], repeated=False)
