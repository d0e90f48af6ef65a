"""``python -m export.convert`` as a function."""

import importlib
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import Any, Optional, Union

from export.convert.pixels import with_pixel_input
from export.convert.source import Made, Options, Source, need_onnx, open_source
from runtime import embedded
from runtime.comparison.detections import compare
from runtime.files import refuse_inputs, write_whole
from runtime.image_files import find_images
from runtime.messages import listed, shown

# By name: the module of each, and the file of it that `runtime` can be asked the same images with.
TARGETS = {
    "onnx": ("plain", "model.onnx"),
    "openvino": ("openvino", "model.xml"),
    "triton": ("triton", "models/{name}/1/model.onnx"),
    "trtexec": ("trtexec", ""),
    "deepstream": ("deepstream", ""),
}
LAYOUTS = {"nchw": "uint8", "nhwc": "uint8_nhwc"}
README = "README.md"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,99}")


@dataclass(frozen=True)
class Conversion:
    """What was written.

    Attributes:
        folder: where to.
        made: the files, relative to it, the commands and notes.
        num_compared: detections that were found again with the new file; None where it was not compared.
    """

    folder: Path
    made: Made
    num_compared: Optional[int] = None


def convert(
    model: Union[str, Path],
    target: str,
    output: Union[str, Path],
    *,
    input: str = "float32",
    images: Sequence[Union[str, Path]] = (),
    check: bool = True,
    **options: Any,
) -> Conversion:
    """Write what another program wants of a model, and a README with the commands.

    Args:
        model: an ONNX of ours; for Triton also an engine with its sidecar.
        target: one of ``TARGETS``.
        output: the folder.
        input: ``float32``, or ``uint8`` or ``uint8_nhwc``: the graph takes pixels.
        images: files, folders or patterns to compare with; those that come with the tool where there are none.
        check: compare what can be run here (``onnx``, ``openvino``, ``triton``) with the model.
        options: other fields of ``Options``.

    Raises:
        OSError: a file cannot be read or written.
        ValueError: unusable arguments, or a model that the target cannot have; says why.
        RuntimeError: what is written finds something else than the model, or a package is missing.
    """
    module, file = _target(target)
    asked = Options(input=input, **options)
    _check_name(asked.name)
    source = open_source(model)
    folder = Path(output)
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"-o {folder}: expected a folder or a new name, found a file; name another")
    if input != "float32":
        source = _with_pixels(source, target, input)
    for name in (README, file.format(name=asked.name)):
        refuse_inputs(folder / (name or README), [model])
    made = module.convert(source, folder, asked)
    num = None
    if check and file and source.model is not None:
        num = _compared(Path(model), folder / file.format(name=asked.name), images)
    write_whole(folder / README, readme(source, target, made).encode())
    return Conversion(folder, made, num)


def _target(name: str) -> tuple[ModuleType, str]:
    if name not in TARGETS:
        raise ValueError(f"--for: expected one of {', '.join(TARGETS)}, found {shown(name)}")
    module, file = TARGETS[name]
    return importlib.import_module(f"export.convert.{module}"), file


def _check_name(name: str) -> None:
    if not _NAME.fullmatch(name):
        raise ValueError(
            f"--name: expected letters, digits, _, - and dots, found {shown(name)}; give another"
        )


def _with_pixels(source: Source, target: str, input: str) -> Source:
    model = with_pixel_input(need_onnx(source, f"{target} with --input uint8"), source.metadata, input)
    return replace(source, model=model, metadata=replace(source.metadata, input=input))


def _compared(model: Path, made: Path, images: Sequence[Union[str, Path]]) -> int:
    """Hold the file against the model; return how many detections both have.

    Raises:
        RuntimeError: they differ, or nothing was found that could.
    """
    paths = find_images(map(str, images)) if images else list(embedded.VERIFICATION_IMAGES)
    # The ONNX where onnxruntime is; of an IR its own.
    backend = "onnxruntime" if made.suffix == ".onnx" else "auto"
    found = compare(model, made, paths, backends=("onnxruntime", backend))
    violations = [f"{image.image}: {text}" for image in found.images for text in image.violations]
    if violations:
        raise RuntimeError(
            f"{made}: expected what {model} finds, found a file that differs: {listed(violations, 2)}; report it, with "
            "the versions that `pip freeze` prints"
        )
    num = sum(image.difference.matched for image in found.images)
    if not num:
        raise ValueError(
            f"--images: expected images in which {model} finds something, found nothing in {len(paths)}; name some "
            "with its objects, or --no-verify"
        )
    return num


def readme(source: Source, target: str, made: Made) -> str:
    """Return the text of the README: files, commands, notes."""
    lines = [f"# {source.path.name} for {target}", "", "```sh", *made.commands, "```", ""]
    lines += ["| file | |", "| --- | --- |", *(f"| `{name}` | {what} |" for name, what in made.files.items())]
    if made.notes:
        lines += ["", *(f"- {note}" for note in made.notes)]
    facts = source.metadata
    size = "any" if facts.size is None else f"{facts.size[0]}x{facts.size[1]}"
    # Pixels come as OpenCV decodes them.
    order = facts.color_order if facts.input == "float32" else "bgr"
    lines += [
        "",
        f"Input {facts.input}, {order} channels, size {size}, masks {facts.masks}, {len(facts.classes)} classes.",
        "",
    ]
    return "\n".join(lines)
