"""An auto-annotation function for CVAT's SDK and command line.

    cvat-cli auto-annotate TASK --function-module runtime.interop.cvat -p model=str:model.onnx

CVAT matches labels by name. A model's masks become masks, or polygons where CVAT asks for them (without holes, which
its polygons have not, one for each part); key points become skeletons; other objects rectangles.
"""

from collections.abc import Iterator
from types import ModuleType
from typing import Any, Optional

import numpy as np

from runtime.closing import Closing
from runtime.detections import Detections
from runtime.detector import Detector

# Key points of a lower score are marked as occluded: they are where the model supposes them.
_VISIBLE_SCORE = 0.25


def create(
    model: str, *, backend: str = "auto", score: float = 0.3, tolerance: float = 1.0, **options: Any
) -> "CvatFunction":
    """Return the function; what ``cvat-cli`` calls with the parameters of ``-p``.

    Args:
        model: path of an exported model, or of an engine.
        backend, options: see ``Detector``.
        score: least score where CVAT asks for none.
        tolerance: px by which polygons may be off, so that people can edit them.

    Raises:
        FileNotFoundError, ValueError, RuntimeError: see ``Detector``; or cvat-sdk or Pillow is not installed.
    """
    annotation = _package()
    return CvatFunction(
        Detector(model, backend, batch_size=1, **options), annotation, score=score, tolerance=tolerance
    )


class CvatFunction(Closing):
    """A detector with CVAT's protocol: ``spec``, and ``detect(context, image)``."""

    def __init__(
        self, detector: Detector, annotation: Optional[ModuleType] = None, *, score: float, tolerance: float
    ) -> None:
        """Wrap a detector; ``annotation`` is ``cvat_sdk.auto_annotation``."""
        self._detector, self._score, self._tolerance = detector, score, tolerance
        self._cvat: Any = annotation or _package()

    @property
    def spec(self) -> Any:
        """The labels: the model's classes, a label's id being its number."""
        facts = self._detector.metadata
        return self._cvat.DetectionFunctionSpec(
            labels=[self._label(name, number) for number, name in enumerate(facts.classes)]
        )

    def detect(self, context: Any, image: Any) -> list:
        """Return the shapes that are found in an image.

        Args:
            context: of CVAT: ``conf_threshold``, ``conv_mask_to_poly``.
            image: a ``PIL.Image.Image``.
        """
        least = self._score if context.conf_threshold is None else context.conf_threshold
        (found,) = self._detector([self._pixels(image)])
        return [
            shape for one in found.filter(least) for shape in self._shapes(one, context.conv_mask_to_poly)
        ]

    def close(self) -> None:
        """Release the model."""
        self._detector.close()

    def _label(self, name: str, number: int) -> Any:
        facts = self._detector.metadata
        if facts.keypoints:
            points = [self._cvat.keypoint_spec(point, index) for index, point in enumerate(facts.keypoints)]
            return self._cvat.skeleton_label_spec(name, number, points)
        return self._cvat.label_spec(name, number, type="rectangle" if facts.masks == "none" else "mask")

    def _pixels(self, image: Any) -> np.ndarray:
        """Return the image as ``read_image`` would: BGR, grey of a model that reads grey images."""
        from PIL import ImageOps

        upright = ImageOps.exif_transpose(image)
        if self._detector.metadata.load.is_grey:
            return np.array(upright.convert("L"))
        return np.ascontiguousarray(np.array(upright.convert("RGB"))[..., ::-1])

    def _shapes(self, one: Detections, as_polygons: bool) -> Iterator[Any]:
        label = int(one.labels[0])
        if one.keypoints is not None:
            yield self._cvat.skeleton(label, [self._point(i, p) for i, p in enumerate(one.keypoints[0])])
        elif not one.has_masks:
            yield self._cvat.rectangle(label, one.boxes[0].tolist())
        elif as_polygons:
            for polygon in one.polygons(tolerance=self._tolerance, holes="fill")[0]:
                yield self._cvat.polygon(label, polygon.ravel().tolist())
        elif one.masks[0].any():  # CVAT has no empty masks
            from cvat_sdk.masks import encode_mask

            yield self._cvat.mask(label, encode_mask(one.masks[0]))

    def _point(self, index: int, point: np.ndarray) -> Any:
        x, y, score = point.tolist()
        return self._cvat.keypoint(index, [x, y], occluded=score < _VISIBLE_SCORE)


def _package() -> ModuleType:
    try:
        import PIL  # noqa: F401
        from cvat_sdk import auto_annotation
    except ImportError as error:
        raise RuntimeError(
            f"CVAT: expected the Python packages cvat-sdk and Pillow, found {error}; "
            "`pip install cvat-sdk pillow`, or `pip install '.[cvat]'`"
        ) from error
    return auto_annotation
