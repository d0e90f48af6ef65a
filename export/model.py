"""An mmdet model, built from its config and filled from its checkpoint."""

import patches  # isort: skip  # noqa: F401  (first: without mmcv's compiled operators mmdet is importable after it)

from dataclasses import dataclass
from pathlib import Path
from typing import Optional

import torch
from mmdet.models.detectors import SemiBaseDetector
from mmdet.registry import MODELS
from mmdet.utils import register_all_modules
from mmengine.config import Config
from torch import nn

from export.checkpoint import Checkpoint, load_weights, read_checkpoint
from export.config import load_config
from export.random_weights import randomize
from patches.families import FAMILIES, UnsupportedModelError, check_supported

# Of the image that random weights are fitted to, (height, width) px.
RANDOM_WEIGHTS_SIZE = (256, 384)
# Of what mmdet says, characters.
MOST_WORDS = 1000


class ModelBuildError(ValueError):
    """mmdet cannot build the config's model: what it says about it."""


@dataclass(frozen=True)
class LoadedModel:
    """A model with where it came from.

    Attributes:
        model: the detector in evaluation mode.
        config: its config.
        name: the config's name.
        checkpoint: None for random weights.
        whole: what the config builds, where the detector is a part of it (semi-supervised training).
    """

    model: nn.Module
    config: Config
    name: str
    checkpoint: Optional[Checkpoint]
    whole: Optional[nn.Module] = None

    @property
    def preprocessor(self) -> nn.Module:
        """The data preprocessor that mmdet's inference uses."""
        return (self.whole or self.model).data_preprocessor

    @property
    def in_channels(self) -> int:
        """The channels of the images that the backbone takes; three where its config does not say."""
        return in_channels(self.config)


def load_model(
    config: str,
    checkpoint: Optional[Path],
    *,
    device: str = "cpu",
    max_per_img: Optional[int] = None,
    max_proposals: Optional[int] = None,
    trust_pickle: bool = False,
    allow_mismatch: bool = False,
) -> LoadedModel:
    """Build the config's model and load the checkpoint into it.

    Args:
        config: a path or a shipped config's bare name.
        checkpoint: the weights, or None for random ones (``export.random_weights``).
        device: where the model runs.
        max_per_img: most detections per image; None for the config's.
        max_proposals: most proposals per image; None for the config's.
        trust_pickle, allow_mismatch: see ``export.checkpoint``.

    Raises:
        FileNotFoundError, ValueError: see ``export.config`` and ``export.checkpoint``.
        patches.families.UnsupportedModelError: not a detector that can be exported.
    """
    cfg = load_config(config)
    for family in FAMILIES:
        family.limit(cfg.model.get("detector", cfg.model).get("test_cfg") or {}, max_per_img, max_proposals)
    content = None if checkpoint is None else read_checkpoint(checkpoint, trust_pickle=trust_pickle)
    model = model_from_config(cfg)
    detector = _predicting_detector(model)
    _check_supported(detector)
    if content is None:
        _randomize(detector)
    else:
        load_weights(model, content, allow_mismatch=allow_mismatch)
    whole = model.to(torch.device(device))
    return LoadedModel(
        detector, cfg, Path(cfg.filename or config).stem, content, None if detector is model else whole
    )


def _check_supported(detector: nn.Module) -> None:
    try:
        check_supported(detector)
    except UnsupportedModelError as error:
        raise UnsupportedModelError(f"config: {error}") from error


def _randomize(detector: nn.Module) -> None:
    """Give random weights, which takes an image through the model.

    Raises:
        ModelBuildError: its parts do not fit together.
    """
    try:
        randomize(detector, seed=0, size=RANDOM_WEIGHTS_SIZE)
    except Exception as error:  # of mmdet's layers, which do not check what they are built with
        raise ModelBuildError(
            f"config: expected a model that an image goes through, found: {_why(error)}; mend the part that it names"
        ) from error


def _why(error: Exception) -> str:
    return " ".join(str(error).split())[:MOST_WORDS] or type(error).__name__


def in_channels(config: Config) -> int:
    """Return the channels of the images that a config's backbone takes; three where it does not say."""
    backbone = config.model.get("detector", config.model).get("backbone") or {}
    return backbone.get("in_channels") or 3


def _predicting_detector(model: nn.Module) -> nn.Module:
    """Return the detector that a semi-supervised model predicts with; any other model itself."""
    if not isinstance(model, SemiBaseDetector):
        return model
    return model.teacher if model.semi_test_cfg.get("predict_on", "teacher") == "teacher" else model.student


def model_from_config(config: Config) -> nn.Module:
    """Build the model in evaluation mode with gradients off, the same one every time.

    Raises:
        ModelBuildError: mmdet cannot build it.
    """
    register_all_modules(init_default_scope=True)
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)  # Of some layers mmdet draws the weights here, and never again.
            model = MODELS.build(config.model)
    except Exception as error:
        raise ModelBuildError(
            f"config: expected a model that mmdet can build, found: {_why(error)}"
        ) from error
    model.eval()  # which mmdet's backbones return nothing from
    training = [name for name, module in model.named_modules() if module.training]
    if training:
        raise ModelBuildError(
            "model: expected every module in evaluation mode after eval(), found "
            f"{training[0] or type(model).__name__} in training mode; its results depend on the batch"
        )
    return model.requires_grad_(False)
