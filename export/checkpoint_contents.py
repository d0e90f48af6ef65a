"""What a checkpoint holds where the weights were expected, said in a refusal."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from export.checkpoint_files import shown
from export.restricted_pickle import Stub, TensorRecord, UnusableTensor, mapping_of

# Where the weights stand, the first that is there: mmengine and mmcv, detectron2, an averaged model alone.
WEIGHTS_KEYS = ("state_dict", "model", "ema_state_dict")


class NeedsCodeError(ValueError):
    """The weights are in objects that only code of another project can rebuild."""


def is_tensor(value: Any) -> bool:
    """Tell a tensor, be it read already, still in its file, or of a kind that cannot be a weight."""
    return isinstance(value, (Tensor, TensorRecord, UnusableTensor))


def no_dictionary(path: Path, content: Any) -> ValueError:
    """Return the refusal of a file whose content is no dictionary."""
    if _is_model(content):
        return _whole_model(path, content)
    if isinstance(content, Stub):
        return needs_code(path, content)
    found = "a single tensor" if is_tensor(content) else type(content).__name__
    return ValueError(
        f"checkpoint {shown(path)}: expected a dictionary of weights, found {found}. "
        "Save the model's state_dict(), or give the .pth file that training wrote."
    )


def no_weights(path: Path, content: Mapping, state_dict: Mapping) -> ValueError:
    """Return the refusal of a dictionary without tensors, by what it holds instead."""
    if not state_dict:
        return _expected_state_dict(path, "an empty one", "Take another epoch's checkpoint.")
    for values in (state_dict, content):
        model = next((v for v in values.values() if _is_model(v)), None)
        if model is not None:
            return _whole_model(path, model)
    if state_dict is not content or all(isinstance(v, Stub) for v in state_dict.values()):
        stub = next((v for v in state_dict.values() if isinstance(v, Stub)), None)
        if stub is not None and "numpy" not in stub.name:
            return needs_code(path, stub)
        key, value = next(iter(state_dict.items()))
        what = value.name if isinstance(value, Stub) else type(value).__name__
        return _expected_state_dict(
            path, f"no tensor in it ({shown(key)} is a {shown(what)})", "Save the model's state_dict()."
        )
    for key, value in content.items():
        inner = mapping_of(value) or {}
        if any(is_tensor(v) for v in inner.values()):
            return _expected_state_dict(
                path, f"tensors under the key {shown(key)}", f"Save that dictionary as {WEIGHTS_KEYS[0]}."
            )
    return _expected_state_dict(
        path, f"the keys {listed(content)}", "Give the .pth file that training wrote."
    )


def _expected_state_dict(path: Path, found: str, remedy: str) -> ValueError:
    return ValueError(f"checkpoint {shown(path)}: expected a state dict, found {found}. {remedy}")


def _is_model(value: Any) -> bool:
    """Tell a pickled ``nn.Module``, of whatever class, by its state."""
    if isinstance(value, Stub):
        return isinstance(value.state, dict) and {"_modules", "_parameters"} <= set(value.state)
    return isinstance(value, nn.Module)


def _whole_model(path: Path, model: Any) -> ValueError:
    name = model.name if isinstance(model, Stub) else type(model).__name__
    return ValueError(
        f"checkpoint {shown(path)}: expected a state dict, found a whole model (an object of {shown(name)}). "
        "Load it where it was made and save its weights: torch.save(model.state_dict(), ...)"
    )


def needs_code(path: Path, stub: Stub) -> ValueError:
    """Return the refusal of a stub where weights were expected: trust helps, but not with a whole model."""
    if _is_model(stub):
        return _whole_model(path, stub)
    return NeedsCodeError(
        f"checkpoint {shown(path)}: expected weights in tensors and plain dictionaries, found a pickle that wants to "
        f"run code to rebuild them ({shown(stub.name)}). "
        "If you trust whoever made it, give --trust-checkpoint."
    )


def listed(keys: Iterable, limit: int = 8) -> str:
    """Return the first keys in one line, and how many more there are."""
    texts = [shown(k, 120) for k in keys]
    more = f", and {len(texts) - limit} more" if len(texts) > limit else ""
    return ", ".join(texts[:limit]) + more
