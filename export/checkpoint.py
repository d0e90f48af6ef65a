"""Checkpoints of mmdet 2.x and 3.x, read without running their code."""

import hashlib
import pickle
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Optional

import torch
from torch import Tensor, nn

# DistributedDataParallel prefixes every key, mmengine's averaged model likewise.
PREFIXES = ("module.", "ema_model.")
# mmcv 1.x keeps a second copy of each weight as a buffer of this name. Where there is one, the weights proper are
# the averaged ones (both mmcv 1.x and mmengine swap the two when they save), so the copy is not needed.
MMCV1_AVERAGE = "ema_"
BUFFERS = (".num_batches_tracked",)


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint's content, cleaned.

    Attributes:
        weights: key of the model's state dict -> tensor.
        classes: class names that the checkpoint carries, or None.
        sha256: of the file.
    """

    weights: dict[str, Tensor]
    classes: Optional[tuple[str, ...]]
    sha256: str


def read_checkpoint(path: Path, *, trust_pickle: bool = False) -> Checkpoint:
    """Read a ``.pth`` file.

    Args:
        path: the file.
        trust_pickle: let an old checkpoint's pickle run code, if ``weights_only`` cannot read it.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not a checkpoint, or one that needs ``trust_pickle``.
    """
    if not path.is_file():
        raise FileNotFoundError(f"checkpoint: expected a file, found nothing at {path}")
    content = _load(path, trust_pickle)
    if not isinstance(content, Mapping):
        raise ValueError(
            f"checkpoint {path}: expected a dictionary of weights, found {type(content).__name__}"
        )
    return Checkpoint(_weights(path, content), _classes(content), _sha256(path))


def load_weights(model: nn.Module, checkpoint: Checkpoint, *, allow_mismatch: bool = False) -> None:
    """Copy the checkpoint's weights into the model.

    Raises:
        ValueError: keys are missing, unexpected or of another shape, and ``allow_mismatch`` is off; lists them.
    """
    weights = checkpoint.weights
    own = model.state_dict()
    wrong_shape = {k for k, v in weights.items() if k in own and own[k].shape != v.shape}
    usable = {k: v for k, v in weights.items() if k not in wrong_shape}
    missing, unexpected = model.load_state_dict(usable, strict=False)
    missing = [k for k in missing if not k.endswith(BUFFERS) and k not in wrong_shape]
    problems = [
        *_listed("missing in the checkpoint", missing),
        *_listed("not in the model", unexpected),
        *_listed(
            "of another shape",
            [
                f"{k} (model {tuple(own[k].shape)}, checkpoint {tuple(weights[k].shape)})"
                for k in sorted(wrong_shape)
            ],
        ),
    ]
    if problems and not allow_mismatch:
        raise ValueError(
            "checkpoint and config do not belong together:\n" + "\n".join(problems) + "\n"
            "Give the config that the checkpoint was trained with, or --allow-mismatch to export it all the same."
        )


def _load(path: Path, trust_pickle: bool) -> Any:
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, KeyError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        unsafe = isinstance(error, pickle.UnpicklingError) and "weights" in str(error).lower()
        if not unsafe:
            raise ValueError(
                f"checkpoint {path}: expected a PyTorch checkpoint, found a file that cannot be read: {reason}"
            ) from error
        if not trust_pickle:
            raise ValueError(
                f"checkpoint {path}: expected tensors and plain values only, "
                f"found a pickle that wants to run code ({reason}). "
                "If you trust whoever made it, give --trust-checkpoint."
            ) from error
    return torch.load(path, map_location="cpu", weights_only=False)


def _weights(path: Path, content: Mapping) -> dict[str, Tensor]:
    weights = content
    for key in ("state_dict", "model", "ema_state_dict"):
        if isinstance(content.get(key), Mapping):
            weights = content[key]
            break
    cleaned = {_clean(k): v for k, v in weights.items() if isinstance(v, Tensor) and _is_weight(k)}
    if not cleaned:
        raise ValueError(
            f"checkpoint {path}: expected a state dict, found the keys {', '.join(map(str, list(content)[:8]))}"
        )
    return {k: v for k, v in cleaned.items() if not k.startswith("data_preprocessor.")}


def _is_weight(key: str) -> bool:
    mmcv1_copy = key.startswith(MMCV1_AVERAGE) and "." not in key
    return not mmcv1_copy and key != "steps"


def _clean(key: str) -> str:
    for prefix in PREFIXES:
        if key.startswith(prefix):
            return _clean(key[len(prefix) :])
    return key


def _classes(content: Mapping) -> Optional[tuple[str, ...]]:
    """mmdet 3 stores meta.dataset_meta.classes, mmdet 2 meta.CLASSES."""
    meta = content.get("meta")
    if not isinstance(meta, Mapping):
        return None
    dataset = meta.get("dataset_meta") or {}
    classes = dataset.get("classes", dataset.get("CLASSES", meta.get("CLASSES")))
    if isinstance(classes, str):
        classes = (classes,)
    return tuple(classes) if classes else None


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def _listed(title: str, keys: list[str], limit: int = 8) -> list[str]:
    if not keys:
        return []
    more = f", and {len(keys) - limit} more" if len(keys) > limit else ""
    return [f"  {len(keys)} {title}: {', '.join(keys[:limit])}{more}"]
