"""How close detections must be to those of FP32, and how long a search may take; loads nothing, for command lines."""

from dataclasses import dataclass

# Each runs the model on every image.
MAX_EVALUATIONS = 200


@dataclass(frozen=True)
class AgreementTolerance:
    """How close a detection must be to its counterpart, and how many must have one.

    Attributes:
        box_px: largest difference of a coordinate, px of the original image.
        score: largest difference of the score.
        mask: largest share of differing pixels, of those that either mask has.
        min_score: detections below this score need no counterpart: where the model hardly sees anything, FP16 and
            FP32 differ in what they suppress.
        share: least share of detections that agree.
    """

    box_px: float = 0.5
    score: float = 0.01
    mask: float = 0.02
    min_score: float = 0.3
    share: float = 0.97
