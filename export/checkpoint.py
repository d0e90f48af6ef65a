"""Checkpoints of mmdet 2.x and 3.x as training leaves them, read without running their code."""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Optional, Union

import torch
from torch import Tensor, nn

from export.checkpoint_archive import (
    Archive,
    DamagedError,
    NotAnArchiveError,
    from_any_failure,
    opened,
)
from export.checkpoint_contents import (
    WEIGHTS_KEYS,
    NeedsCodeError,
    is_tensor,
    listed,
    needs_code,
    no_dictionary,
    no_weights,
)
from export.checkpoint_files import kind_of, local_file, shown, unreadable
from export.restricted_pickle import Stub, TensorRecord, UnusableTensor, mapping_of, sequence_of
from runtime.files import sha256_of

# {"model": {"state_dict": ...}} is found; a dictionary that holds itself ends here.
MAX_WRAPPERS = 4
# DistributedDataParallel prefixes every key, mmengine's averaged model likewise.
PREFIXES = ("module.", "ema_model.")
# mmcv 1.x keeps a second copy of each weight as a buffer of this name. Where there is one, the weights proper are
# the averaged ones (both mmcv 1.x and mmengine swap the two when they save), so the copy is not needed.
MMCV1_AVERAGE = "ema_"
BUFFERS = (".num_batches_tracked",)
# Elements that torch turns into float32 or int64; the others are packed, quantized or complex.
NUMBERS = (
    *(torch.float64, torch.float32, torch.float16, torch.bfloat16),
    *(torch.float8_e4m3fn, torch.float8_e5m2, torch.float8_e4m3fnuz, torch.float8_e5m2fnuz),
    *(torch.int64, torch.int32, torch.int16, torch.int8, torch.bool),
    *(torch.uint8, torch.uint16, torch.uint32, torch.uint64),
)
# Of normalization layers; a model that was never trained has ones here.
STATISTICS = ("running_mean", "running_var")
# Objects that every training run of mmengine saves beside the weights: not worth a line.
USUAL = ("mmengine", "mmcv", "mmdet", "numpy", "pathlib", "datetime", "collections")
USUAL_NAMES = ("builtins.getattr", "builtins.set", "builtins.frozenset", "builtins.slice", "torch.device")


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint's content, cleaned.

    Attributes:
        weights: key of the model's state dict -> tensor.
        classes: class names that the checkpoint carries, or None.
        sha256: of the file.
        notes: what of the file was left out that a user may want to know, a line each.
    """

    weights: dict[str, Tensor]
    classes: Optional[tuple[str, ...]]
    sha256: str
    notes: tuple[str, ...] = ()


def read_checkpoint(path: Path, *, trust_pickle: bool = False) -> Checkpoint:
    """Read a file of ``torch.save``: a state dict, or a dictionary of a training run that holds one.

    Nothing that the file names is run: tensors and plain containers are rebuilt, other objects left out.

    Args:
        path: the file.
        trust_pickle: let the file's pickle run code, if the weights are in objects that only code can rebuild.

    Raises:
        FileNotFoundError: no such file on this machine.
        ValueError: not a checkpoint, a damaged one, one that needs ``trust_pickle``, or weights that are not
            finite or all zero.
        OSError: the file cannot be read.
    """
    file = local_file(Path(path))
    try:
        weights, classes, notes = _read(file, trust_pickle)
        return Checkpoint(weights, classes, sha256_of(file), notes)
    except OSError as error:
        raise unreadable(file, error) from error


def load_weights(model: nn.Module, checkpoint: Checkpoint, *, allow_mismatch: bool = False) -> None:
    """Copy the checkpoint's weights into the model.

    Raises:
        ValueError: keys are missing, unexpected or of another shape, and ``allow_mismatch`` is off; lists them. Or
            the model cannot take a weight.
    """
    weights = checkpoint.weights
    own = model.state_dict()
    wrong_shape = {k for k, v in weights.items() if k in own and not _same_shape(own[k], v)}
    usable = {k: v for k, v in weights.items() if k not in wrong_shape}
    try:
        missing, unexpected = model.load_state_dict(usable, strict=False)
    except Exception as error:  # the loading hooks of any layer run here
        raise ValueError(
            f"checkpoint: expected weights that the config's model can take, found: {shown(error)}. "
            "Give the config that the checkpoint was trained with."
        ) from error
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
    prefix = _other_prefix(set(weights), set(own))
    remedy = (
        "Give the config that the checkpoint was trained with, or --allow-mismatch to export it all the same."
    )
    if prefix:
        remedy = "Rename the keys and save the checkpoint again."
    if problems and not allow_mismatch:
        raise ValueError(
            "checkpoint and config do not belong together:\n"
            + "\n".join([*problems, *prefix])
            + "\n"
            + remedy
        )


def _read(
    path: Path, trust_pickle: bool
) -> tuple[dict[str, Tensor], Optional[tuple[str, ...]], tuple[str, ...]]:
    try:
        with opened(path) as archive:
            return _cleaned(path, archive.content, archive)
    except NotAnArchiveError as error:
        kind = kind_of(path)
        refusal: ValueError = ValueError(
            f"checkpoint {shown(path)}: expected a PyTorch checkpoint, found {kind.found}. {kind.remedy}"
        )
        if not (trust_pickle and "--trust-checkpoint" in kind.remedy):
            raise refusal from error
    except DamagedError as error:
        raise ValueError(
            f"checkpoint {shown(path)}: expected a PyTorch checkpoint, found one that is truncated or damaged: "
            f"{shown(error)}. Copy or download it again, or take another epoch's."
        ) from error
    except NeedsCodeError:
        if not trust_pickle:
            raise
    return _cleaned(path, _trusted(path), None)


def _trusted(path: Path) -> Any:
    """Load the file with whatever code it wants to run."""
    try:
        return torch.load(path, map_location="cpu", weights_only=False)
    except Exception as error:  # the code of the file runs here
        raise ValueError(
            f"checkpoint {shown(path)}: expected a pickle that its code can load, found {type(error).__name__}: "
            f"{shown(error)}. Install the project that made it, or load it there and save its state dict alone."
        ) from error


def _cleaned(
    path: Path, content: Any, archive: Optional[Archive]
) -> tuple[dict[str, Tensor], Optional[tuple[str, ...]], tuple[str, ...]]:
    """Return weights, classes and notes of what the file holds; without an archive its tensors are real ones."""
    mapping = mapping_of(content)
    if mapping is None:
        raise no_dictionary(path, content)
    chosen, notes = _weights(path, mapping)
    weights = _dense(path, chosen, archive)
    _check_values(path, weights)
    classes, ignored = _classes(mapping)
    left_out = archive.left_out if archive else Counter()
    return weights, classes, (*_left_out(left_out), *notes, *ignored)


def _weights(path: Path, content: Mapping) -> tuple[dict[str, Any], list[str]]:
    """Return the tensors by the model's keys, and notes on what else lies beside them."""
    state_dict = _state_dict(path, content)
    named = {k: v for k, v in state_dict.items() if is_tensor(v)}
    if not named:
        raise no_weights(path, content, state_dict)
    others = [k for k in named if not isinstance(k, str)]
    if others:
        raise ValueError(
            f"checkpoint {shown(path)}: expected a state dict with names as keys, found keys of type "
            f"{type(others[0]).__name__}. Save the model's state_dict()."
        )
    notes = []
    no_tensors = [] if state_dict is content else [k for k in state_dict if k not in named]
    if no_tensors:
        notes.append(_note(len(no_tensors), "no tensor in the state dict", no_tensors))
    return _by_own_key(named), notes


def _state_dict(path: Path, content: Mapping) -> Mapping:
    """Descend to the dictionary that holds the weights: the content itself, or what stands at ``WEIGHTS_KEYS``."""
    for _ in range(MAX_WRAPPERS):
        if isinstance(content.get("state_dict"), Stub) and mapping_of(content["state_dict"]) is None:
            raise needs_code(path, content["state_dict"])
        inner = [mapping_of(content.get(key)) for key in WEIGHTS_KEYS]
        found = next((m for m in inner if m is not None), None)
        if found is None:
            break
        content = found
        if any(is_tensor(v) for v in content.values()):
            break
    return content


def _by_own_key(named: Mapping[str, Any]) -> dict[str, Any]:
    """Strip wrappers' prefixes; of two keys that become the same the one with fewer prefixes is the weight."""
    cleaned: dict[str, Any] = {}
    for key in sorted(named, key=_num_prefixes):
        own = _clean(key)
        if _is_weight(own):
            cleaned.setdefault(own, named[key])
    order = {k: None for k in map(_clean, named) if k in cleaned}
    return {k: cleaned[k] for k in order}


def _is_weight(key: str) -> bool:
    mmcv1_copy = key.startswith(MMCV1_AVERAGE) and "." not in key
    return not mmcv1_copy and key != "steps" and not key.startswith("data_preprocessor.")


def _num_prefixes(key: str) -> tuple[int, int]:
    stripped = len(key) - len(_clean(key))
    return key.count("ema_model.", 0, stripped), stripped


def _clean(key: str) -> str:
    for prefix in PREFIXES:
        if key.startswith(prefix):
            return _clean(key[len(prefix) :])
    return key


def _dense(path: Path, chosen: Mapping[str, Any], archive: Optional[Archive]) -> dict[str, Tensor]:
    """Read the tensors.

    Raises:
        ValueError: one of them is no dense array of real numbers, or there is none.
        DamagedError: the file does not hold what it declares.
    """
    if archive is not None:
        archive.check_total(v for v in chosen.values() if isinstance(v, TensorRecord))
    unusable = {k: _unusable(v) for k, v in chosen.items()}
    refused = {k: what for k, what in unusable.items() if what}
    if refused:
        key, what = next(iter(refused.items()))
        raise ValueError(
            f"checkpoint {shown(path)}: expected dense tensors of real numbers, found {shown(what)} as "
            f"{shown(key)} ({len(refused)} of {len(chosen)} weights). "
            "Load it where it was trained and save the weights as plain CPU tensors."
        )
    if not chosen:
        raise ValueError(
            f"checkpoint {shown(path)}: expected a model's weights, found only an average's counters and copies. "
            "Give the checkpoint that holds the state dict."
        )
    return {
        k: v.detach() if archive is None else from_any_failure(archive.tensor, v) for k, v in chosen.items()
    }


def _unusable(value: Union[Tensor, TensorRecord, UnusableTensor]) -> Optional[str]:
    """Say what the tensor is instead of a dense array of real numbers; None if it is one."""
    if isinstance(value, UnusableTensor):
        return value.what
    dtype = value.dtype
    if dtype.is_complex:
        return f"a tensor of complex numbers ({dtype})"
    if dtype not in NUMBERS:
        return f"a tensor of type {dtype}"
    if isinstance(value, Tensor) and (value.layout != torch.strided or value.is_meta or value.is_nested):
        return f"a {'meta' if value.is_meta else 'nested' if value.is_nested else 'sparse'} tensor"
    return None


def _check_values(path: Path, weights: Mapping[str, Tensor]) -> None:
    """Refuse weights with which no detector detects anything.

    Raises:
        ValueError: a weight is NaN, infinite or beyond float32, all of them are zero, or none has a fraction.
    """
    floats = {k: v for k, v in weights.items() if v.is_floating_point()}
    broken = [k for k, v in floats.items() if not v.float().isfinite().all()]
    if broken:
        raise ValueError(
            f"checkpoint {shown(path)}: expected finite weights, found NaN or infinity in {len(broken)} of "
            f"{len(floats)} tensors: {listed(broken)}. "
            "Training diverged or the file is damaged: take an earlier epoch's checkpoint."
        )
    learned = {k: v for k, v in floats.items() if not k.endswith(STATISTICS)} or floats
    if not any(v.float().any() for v in learned.values()):
        found = f"all {len(learned)} floating-point tensors zero" if learned else "none of floating point"
        raise ValueError(
            f"checkpoint {shown(path)}: expected trained weights, found {found}. "
            "The file was written before training or is damaged: take another epoch's checkpoint."
        )


def _classes(content: Mapping) -> tuple[Optional[tuple[str, ...]], list[str]]:
    """Return the names as ``init_detector`` takes them, and a note where there are some that are no names.

    mmdet 3 stores meta.dataset_meta.classes in any case, mmdet 2 meta.CLASSES; text is the name of the one class.
    """
    meta = mapping_of(content.get("meta")) or {}
    dataset = mapping_of(meta.get("dataset_meta")) or {}
    lower = {k.lower(): v for k, v in dataset.items() if isinstance(k, str)}
    classes = lower.get("classes", meta.get("CLASSES"))
    names = [classes] if isinstance(classes, str) else sequence_of(classes)
    if classes is None or names == []:
        return None, []
    if names is None or not all(_is_name(n) for n in names):
        found = classes.name if isinstance(classes, Stub) else type(classes).__name__
        return None, [
            f"the class names that the checkpoint carries are no list of names ({shown(found)}): ignored"
        ]
    return tuple(map(str, names)), []


def _is_name(value: Any) -> bool:
    """Tell text that can be written; a pickle may hold halves of surrogate pairs."""
    return isinstance(value, str) and value.encode("utf-8", "replace").decode() == value


def _left_out(names: Counter) -> list[str]:
    """Say which objects of other projects the file holds; what every training run saves is not listed."""
    foreign = Counter(
        {n: c for n, c in names.items() if n.split(".")[0] not in USUAL and n not in USUAL_NAMES}
    )
    if not foreign:
        return []
    return [_note(sum(foreign.values()), "of another project, whose code did not run", foreign)]


def _note(count: int, what: str, names: Iterable) -> str:
    return f"left out {count} {'object' if count == 1 else 'objects'} ({what}): {listed(names)}"


def _other_prefix(weights: set[str], own: set[str]) -> list[str]:
    """Say so if the keys match but for a prefix: Lightning's ``model.``, a semi-supervised ``teacher.``."""
    if weights & own:
        return []
    for prefix in sorted({f"{k.split('.')[0]}." for k in weights}):
        bare = {k[len(prefix) :] for k in weights if k.startswith(prefix)}
        if bare & own:
            return [f"  {len(bare & own)} keys would be the model's without the prefix {shown(prefix)}"]
    for prefix in sorted({f"{k.split('.')[0]}." for k in own}):
        num_matching = sum(f"{prefix}{k}" in own for k in weights)
        if num_matching:
            return [f"  {num_matching} keys would be the model's with the prefix {shown(prefix)}"]
    return []


def _same_shape(own: Tensor, given: Tensor) -> bool:
    """Tell whether torch copies the one into the other; PyTorch < 0.4 saved scalars with one dimension."""
    return own.shape == given.shape or (own.dim() == 0 and given.shape == (1,))


def _listed(title: str, keys: list[str]) -> list[str]:
    return [f"  {len(keys)} {title}: {listed(keys)}"] if keys else []
