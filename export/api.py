"""The exporter as a function: config and checkpoint -> patched model -> ONNX -> compared with mmdet -> one file."""

import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Optional, Union

import onnx
import torch

from export.arguments import check_device_name, check_output, check_request, failed_path
from export.dataset import test_pipeline
from export.graph import (
    GraphOptions,
    detached_onnx_from_model,
    num_nodes,
    onnx_from_model,
    simplified,
    with_metadata,
)
from export.metadata import metadata_from_model, names_of, price_of_fixed_size, trace_size
from export.model import LoadedModel, load_model
from export.verify import (
    ENOUGH_DETECTIONS,
    LOWER_THRESHOLDS,
    Case,
    MmdetInference,
    pixel_difference,
    verify,
    with_score_threshold,
)
from export.weights import MOST_BYTES, DetachedWeights, attached, data_path, num_bytes
from runtime.comparison.difference import Tolerance
from runtime.embedded import CHECKPOINT_PATH, CONFIG_PATH, VERIFICATION_IMAGES
from runtime.files import locked, refuse_inputs, whole_file, withdraw, working_folder, write_whole
from runtime.graphs.inlining import inlined
from runtime.image_files import find_images
from runtime.images import read_image
from runtime.interrupts import held
from runtime.metadata import ModelMetadata
from runtime.precision import PrecisionPlan, default_plan, plan_path

PathLike = Union[str, Path]
# Files that are verified with, of all that --images names; the rest would take hours.
MAX_IMAGES = 16


class VerificationError(Exception):
    """The exported file does not find what mmdet finds, or nothing was found that would show it.

    Attributes:
        result: what was compared; its ``path`` is where the file is kept, or None where none was made.
    """

    def __init__(self, message: str, result: "ExportResult") -> None:
        super().__init__(message)
        self.result = result


class PixelsDifferError(ValueError):
    """mmdet's test pipeline and the runtime make different pixels of a file, or place them differently."""


@dataclass(frozen=True)
class ExportResult:
    """What an export made.

    Attributes:
        path: of the file.
        plan_path: of its precision plan.
        metadata: the model's facts.
        plan: the nodes that stay FP32 in an FP16 engine.
        cases: one per verified image, of each batch; none where verification was left out.
        threshold: score above which detections were compared; lower than the model's own where it found too few.
        seconds: by step.
        notes: what a user should know, a line each.
    """

    path: Optional[Path]
    plan_path: Optional[Path]
    metadata: ModelMetadata
    plan: Optional[PrecisionPlan]
    cases: tuple[Case, ...] = ()
    threshold: Optional[float] = None
    seconds: dict[str, float] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


INLINED = "the file is in standard operators alone, for OpenVINO's own tools: TensorRT's plugins have no nodes there"

Steps = Callable[[str], AbstractContextManager[Any]]


class _Silent:
    def note(self, text: str) -> None:
        """Show nothing."""


def export_model(
    config: Optional[PathLike] = None,
    checkpoint: Optional[PathLike] = None,
    output: PathLike = Path("out/maskrcnn.onnx"),
    *,
    size: Optional[tuple[int, int]] = None,
    dynamic_size: bool = False,
    masks: str = "crop",
    opset: int = GraphOptions.opset,
    max_per_img: Optional[int] = None,
    simplify: bool = True,
    for_backend: Optional[str] = None,
    verify: bool = True,
    images: Optional[Sequence[PathLike]] = None,
    device: str = "cpu",
    trust_checkpoint: bool = False,
    allow_mismatch: bool = False,
    steps: Optional[Steps] = None,
) -> ExportResult:
    """Export a detector to one ONNX file, and hold it against mmdet on image files.

    Args:
        config: an mmdet config: a file, or the bare name of one that mmdet ships; None for the embedded model.
        checkpoint: its weights; ``none`` for random ones.
        output: the file, ending in ``.onnx``. One that is there stays until the new one is known to be good.
        size: fixed (height, width) of the network's input, px; None for what the config's test pipeline makes.
        dynamic_size: any height and width also where the test pipeline makes one size alone.
        masks: ``crop`` or ``full``: see ``export.graph.GraphOptions``.
        opset: of ONNX's operators.
        max_per_img: rows in the outputs; None for the config's.
        simplify: fold constants and infer shapes with onnxsim.
        for_backend: ``openvino`` for a file that its own tools read: with the functions' bodies in their nodes' places,
            where TensorRT's plugins find nothing. None for a file for all.
        verify: compare with mmdet.
        images: files, folders and patterns to verify with; None for the embedded ones.
        device: where PyTorch runs.
        trust_checkpoint, allow_mismatch: see ``export.checkpoint``.
        steps: called with each step's title, returns a context manager with a ``note(text)``.

    Returns:
        What was made.

    Raises:
        VerificationError: the file differs from mmdet, or nothing was proven; it is kept as ``NAME.failed.onnx``.
        OSError, ValueError, NotImplementedError: refused, before anything was written.
    """
    run = _Run(steps)
    output = Path(output)
    check_request(
        config,
        checkpoint,
        size=size,
        dynamic_size=dynamic_size,
        opset=opset,
        max_per_img=max_per_img,
        device=device,
        images=images,
        verify=verify,
        for_backend=for_backend,
    )
    check_output(output)
    check_device(device)
    paths = _verification_images(images)
    refuse_inputs(output, [p for p in (config, checkpoint, *paths) if p is not None and Path(p).exists()])
    check_writable(output)
    with run.step(f"load {Path(config or CONFIG_PATH).stem}"):
        loaded = _load(config, checkpoint, device, max_per_img, trust_checkpoint, allow_mismatch)
        metadata = metadata_from_model(
            loaded, size=None if size is None else tuple(size), dynamic_size=dynamic_size, masks=masks
        )
        run.notes += _notes(loaded, metadata, size)
        options = GraphOptions(
            size=trace_size(metadata),
            dynamic_size=metadata.size is None,
            masks=metadata.masks,
            opset=opset,
            channels=metadata.channels,
        )
        mmdet = MmdetInference(loaded, metadata)
    batches = run.compare_pixels(mmdet, paths, metadata, insist=verify)
    with ExitStack() as stack:
        with run.step("trace") as step:
            graph = _traced(loaded, options, output, stack, run.notes)
            step.note(f"{num_nodes(graph.model)} nodes")
        if simplify:
            with run.step("simplify") as step:
                graph = replace(graph, model=simplified(graph.model))
                step.note(f"{num_nodes(graph.model)} nodes")
        with run.step("check"):
            graph = replace(graph, model=with_metadata(graph.model, metadata))
            if for_backend is not None:
                graph = replace(graph, model=inlined(graph.model))
                run.notes.append(INLINED)
            onnx.checker.check_model(graph.model, full_check=True)
            plan = default_plan(graph.placed("weights", graph.weights.tensors))
        return run.write(graph, output, plan, metadata, mmdet, batches)


@dataclass(frozen=True, eq=False)
class _Graph:
    """A graph, and the weights that it does not hold itself."""

    model: onnx.ModelProto
    weights: DetachedWeights = DetachedWeights(Path())

    def placed(self, location: str, tensors: Sequence[onnx.TensorProto]) -> onnx.ModelProto:
        """Return the graph with its weights in a file of that name beside it."""
        return attached(self.model, tensors, location) if self.weights else self.model


def _traced(
    loaded: LoadedModel, options: GraphOptions, output: Path, stack: ExitStack, notes: list[str]
) -> _Graph:
    if num_bytes(loaded.model) <= MOST_BYTES:
        return _Graph(onnx_from_model(loaded.model, options, notes))
    folder = stack.enter_context(working_folder(output))
    return _Graph(*detached_onnx_from_model(loaded.model, options, folder, notes))


class _Run:
    """One export: its steps' times, its notes, and what was compared."""

    def __init__(self, steps: Optional[Steps]) -> None:
        self._steps = steps or (lambda title: nullcontext(_Silent()))
        self.seconds: dict[str, float] = {}
        self.notes: list[str] = []
        self.cases: list[Case] = []
        self.threshold: Optional[float] = None

    def step(self, title: str) -> "_Timed":
        """Return the step, to be entered."""
        return _Timed(self._steps(title), title, self.seconds)

    def compare_pixels(
        self, mmdet: MmdetInference, paths: Sequence[Path], metadata: ModelMetadata, *, insist: bool
    ) -> list[list[Path]]:
        """Return the batches to verify with: two files of unlike shape together, the others alone.

        It takes a second, and shows what mmdet does to images: also where nothing else is to be verified. Then, without
        ``insist``, images that mmdet does not take are no obstacle, and no batches come back.

        Raises:
            PixelsDifferError: mmdet's pixels are others than the runtime's.
        """
        try:
            batches = self._compared_pixels(mmdet, paths, metadata)
        except PixelsDifferError:
            raise
        except (OSError, ValueError, RuntimeError) as error:
            if insist:
                raise
            self.notes.append(f"the test pipeline was not compared with mmdet's: {error}")
            return []
        return batches if insist else []

    def _compared_pixels(
        self, mmdet: MmdetInference, paths: Sequence[Path], metadata: ModelMetadata
    ) -> list[list[Path]]:
        with self.step("compare pixels with mmdet's test pipeline") as step:
            sizes = {path: self._same_pixels([path], mmdet, metadata)[0] for path in paths}
            if len(set(sizes.values())) == 1:
                # A batch needs padding to show that it is not minded.
                others = [path for path in VERIFICATION_IMAGES if path not in sizes]
                sizes.update({path: self._same_pixels([path], mmdet, metadata)[0] for path in others[:2]})
            pair = _unlike_pair(sizes, paths[0])
            self._same_pixels(pair, mmdet, metadata)
            step.note(f"{len(sizes)} files")
        alone = [path for path in paths if path not in pair] or [paths[0]]
        return [*([path] for path in alone), pair]

    def _same_pixels(
        self, paths: Sequence[Path], mmdet: MmdetInference, metadata: ModelMetadata
    ) -> tuple[tuple[int, int], ...]:
        """Compare a batch; return the images' sizes in it."""
        words, sizes = pixel_difference(mmdet, paths, metadata)
        if words:
            raise PixelsDifferError(
                f"{words}: the runtime does not repeat this config's test pipeline; nothing was exported. This is a "
                "defect of the exporter unless the config changes mmdet or mmcv itself: then leave that out and do it "
                "to the images beforehand; else please report the config"
            )
        return sizes

    def write(
        self,
        graph: _Graph,
        output: Path,
        plan: PrecisionPlan,
        metadata: ModelMetadata,
        mmdet: MmdetInference,
        batches: Sequence[Sequence[Path]],
    ) -> ExportResult:
        """Write the file under its name once it is known to be good."""
        with ExitStack() as files:
            # Left last: the ONNX takes its name when its weights have theirs.
            file = files.enter_context(whole_file(output))
            model = graph.model
            if graph.weights:
                data = files.enter_context(whole_file(data_path(output)))
                tensors = graph.weights.write(data)
                data.flush()
                model = graph.placed(Path(data.name).name, tensors)
            file.write(model.SerializeToString())
            file.flush()
            words = self.verify(Path(file.name), output, model, metadata, mmdet, batches) if batches else ""
            if words:
                failed = None if graph.weights else failed_path(output)
                kept = ""
                if failed is not None:
                    write_whole(failed, model.SerializeToString())
                    kept = f"; it is kept as {failed}"
                raise VerificationError(words + kept, self.result(failed, None, metadata, plan))
            if graph.weights:
                file.seek(0)
                file.truncate()
                file.write(graph.placed(data_path(output).name, tensors).SerializeToString())
            _publish(files, output, plan, has_data=bool(graph.weights))
        return self.result(output, plan_path(output), metadata, plan)

    def verify(
        self,
        path: Path,
        output: Path,
        model: onnx.ModelProto,
        metadata: ModelMetadata,
        mmdet: MmdetInference,
        batches: Sequence[Sequence[Path]],
    ) -> str:
        """Compare the file with mmdet; return in words why it may not be used, or nothing."""
        with self.step("compare detections with mmdet, unpatched") as step:
            self.cases = verify(path, mmdet, batches)
            self.threshold = metadata.score_threshold
            if self._agree() and self._num_detections() < ENOUGH_DETECTIONS:
                step.note(f"{self._num_detections()} detections above {metadata.score_threshold:g}")
                self._verify_lower(output, model, metadata, mmdet, batches)
        if not self._agree():
            return "the exported file differs from mmdet"
        if not self._num_detections():
            return (
                "nothing was proven: neither mmdet nor the exported file finds anything in the images, at any score; "
                "give --images with objects of the model's classes, or check that the checkpoint is a trained one"
            )
        return ""

    def _verify_lower(
        self,
        output: Path,
        model: onnx.ModelProto,
        metadata: ModelMetadata,
        mmdet: MmdetInference,
        batches: Sequence[Sequence[Path]],
    ) -> None:
        """Compare again, the same graph with a lower score threshold, until there is enough to compare."""
        own = self.cases
        for threshold in LOWER_THRESHOLDS:
            if threshold >= metadata.score_threshold:
                continue
            # Under the name of a partial file of the output, which is removed whatever ends this process.
            with suppress(_Discarded), whole_file(output) as lower:
                lower.write(with_score_threshold(model, metadata, threshold).SerializeToString())
                lower.flush()
                with mmdet.score_threshold(threshold):
                    self.cases = [*own, *verify(Path(lower.name), mmdet, batches)]
                raise _Discarded
            self.threshold = threshold
            if not self._agree() or self._num_detections() >= ENOUGH_DETECTIONS:
                return

    def _agree(self) -> bool:
        return all(case.within(Tolerance()) for case in self.cases)

    def _num_detections(self) -> int:
        return sum(case.difference.expected for case in self.cases)

    def result(
        self, path: Optional[Path], plan_file: Optional[Path], metadata: ModelMetadata, plan: PrecisionPlan
    ) -> ExportResult:
        """Return what there is."""
        return ExportResult(
            path,
            plan_file,
            metadata,
            plan,
            tuple(self.cases),
            self.threshold,
            dict(self.seconds),
            tuple(self.notes),
        )


class _Discarded(Exception):
    """What was written was needed for a while only."""


def _publish(files: ExitStack, output: Path, plan: PrecisionPlan, *, has_data: bool = False) -> None:
    """Have files take their names by leaving their contexts, and write the plan that belongs to them.

    At any moment there is no plan of another model beside the ONNX: without one, builds use the default, which this is.
    Nor is there an ONNX beside weights of another: where it has some, the ONNX before it goes first. Another process
    that exports to the same name waits, and so does a signal.
    """
    with locked(output.parent), held():
        plan_path(output).unlink(missing_ok=True)
        if has_data:
            withdraw(output)
        files.close()
        plan.save(plan_path(output))
        failed_path(output).unlink(missing_ok=True)


class _Timed:
    """A step that is shown and timed."""

    def __init__(self, shown: AbstractContextManager[Any], title: str, seconds: dict[str, float]) -> None:
        self._shown, self._title, self._seconds = shown, title, seconds

    def __enter__(self) -> Any:
        self._start = time.perf_counter()
        return self._shown.__enter__()

    def __exit__(self, *error: Any) -> Optional[bool]:
        self._seconds[self._title] = time.perf_counter() - self._start
        return self._shown.__exit__(*error)


def check_writable(output: Path) -> None:
    """Refuse a file that cannot be written, before minutes of work are spent on it. Folders that it needs do not stay.

    Raises:
        OSError, ValueError: names the file, and why.
    """
    missing = [folder for folder in (output.parent, *output.parent.parents) if not folder.exists()]
    try:
        with whole_file(output):
            raise _Probed
    except _Probed:
        pass
    finally:
        for folder in missing:
            with suppress(OSError):
                folder.rmdir()


class _Probed(Exception):
    """Ends a writing that was none; what was begun is removed."""


def check_device(device: str) -> None:
    """Refuse what is no device of PyTorch's here.

    Raises:
        ValueError: no such device.
    """
    check_device_name(device)
    try:
        kind = torch.device(device).type
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        kind = None
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
    if kind not in ("cpu", "cuda"):
        why = f" ({reason})" if kind is None else ""
        raise ValueError(
            f"--device: expected a device that PyTorch sees, found {device}{why}; leave it out for the CPU"
        )


def _load(
    config: Optional[PathLike],
    checkpoint: Optional[PathLike],
    device: str,
    max_per_img: Optional[int],
    trust_checkpoint: bool,
    allow_mismatch: bool,
) -> LoadedModel:
    if config is None:
        config, checkpoint = CONFIG_PATH, CHECKPOINT_PATH
    return load_model(
        str(config),
        None if str(checkpoint) == "none" else Path(checkpoint),
        device=device,
        max_per_img=max_per_img,
        trust_pickle=trust_checkpoint,
        allow_mismatch=allow_mismatch,
    )


def _notes(loaded: LoadedModel, metadata: ModelMetadata, size: Optional[Sequence[int]]) -> list[str]:
    names, pipeline = names_of(loaded), test_pipeline(loaded.config)
    notes = []
    if not pipeline.source.startswith("test_dataloader.dataset"):
        notes.append(f"the test pipeline is the config's {pipeline.source}")
    classes = loaded.checkpoint.classes if loaded.checkpoint else None
    if classes is not None and len(classes) != len(names.names):
        notes.append(
            f"the checkpoint names {len(classes)} classes, the model has {len(names.names)}: the names are from "
            f"{names.source}"
        )
    if names.is_invented:
        notes.append(
            f"class names are invented (class_0, class_1, ...): {names.source}; set metainfo=dict(classes=(...)) in "
            "the config's test dataset"
        )
    if loaded.checkpoint is not None:
        notes += getattr(loaded.checkpoint, "notes", ())
    price = price_of_fixed_size(metadata, loaded) if size is not None else ""
    return notes + [price] * bool(price)


def _verification_images(images: Optional[Sequence[PathLike]]) -> list[Path]:
    """Return the files to verify with, at most ``MAX_IMAGES``, spread over all that are named."""
    if images is None:
        return list(VERIFICATION_IMAGES)
    found = find_images([str(image) for image in images])
    step = max(1, -(-len(found) // MAX_IMAGES))
    chosen = found[::step]
    for path in chosen:
        read_image(path)
    return chosen


def _unlike_pair(sizes: dict[Path, tuple[int, int]], first: Path) -> list[Path]:
    """Return the tallest and the widest image; where all have one shape, the first one and another."""
    ordered = sorted(sizes, key=lambda path: sizes[path][1] / sizes[path][0])
    if len(set(sizes.values())) > 1:
        return [ordered[0], ordered[-1]]
    return [first, next(path for path in sizes if path != first)]
