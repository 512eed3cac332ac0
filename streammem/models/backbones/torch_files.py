"""Published checkpoints as torch files (``.pth``): opened without running what they may hold.

state = read_torch(Path("finetune.pth"))           # tensors by name, memory-mapped
wrong = misfits({n: tuple(t.shape) for n, t in state.items()}, wanted, re.compile("..."))
"""

import logging
import pickle
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor, nn

from streammem.errors import BackboneError, CheckpointError

NAMED = 12  # tensors that a list of misfits names, of each kind
log = logging.getLogger(__name__)
NONE_IGNORED = re.compile(r"(?!)")
M = TypeVar("M", bound=nn.Module)


def read_torch(path: Path) -> dict[str, Tensor]:
    """Read the tensors of a torch file, by weights-only loading.

    Args:
        path: of a file that holds a state dict, or one under ``model`` beside what training left.

    Raises:
        BackboneError: the file is not there.
        CheckpointError: it is corrupt, holds anything that could run code, or no tensors.
    """
    if not path.is_file():
        raise BackboneError(f"{path}: no such file; get it, or name another")
    try:
        try:
            found = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        except RuntimeError:  # written before torch 1.6: such a file cannot be mapped
            found = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{path}: is corrupt, or holds more than tensors and plain values, and such a file can "
            "run code, so it is not opened; where you trust it, write its tensors alone: "
            "torch.save(torch.load(FILE, weights_only=False)['model'], NEW)"
        ) from error
    except Exception as error:
        reason = str(error).strip().partition("\n")[0]
        raise CheckpointError(f"{path}: corrupt ({reason}); get it again") from error
    state = found.get("model", found) if isinstance(found, Mapping) else None
    if not isinstance(state, Mapping) or not all(isinstance(v, Tensor) for v in state.values()):
        raise CheckpointError(f"{path}: holds no tensors by name, nor such under 'model'")
    return dict(state)


def size_of(tensors: Mapping[str, Tensor], name: str, axis: int, default: int) -> int:
    """Return a tensor's size along an axis; ``default`` where it is missing or has no such axis."""
    value = tensors.get(name)
    return value.shape[axis] if value is not None and value.ndim > axis else default


def layers_of(tensors: Mapping[str, Tensor], prefix: str, default: int) -> int:
    """Return how many layers are numbered behind a prefix; ``default`` without any."""
    found = re.compile(rf"{re.escape(prefix)}(\d+)\..*")
    numbers = [int(match[1]) for name in tensors if (match := found.fullmatch(name))]
    return max(numbers) + 1 if numbers else default


def shapes_of(tensors: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    """Return the shape of each tensor."""
    return {name: tuple(value.shape) for name, value in tensors.items()}


def filled(
    part: M,
    tensors: Mapping[str, Tensor],
    complaint: str,
    *,
    ignored: re.Pattern[str] = NONE_IGNORED,
    device: str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> M:
    """Fill a module with tensors of its names; it is frozen, in evaluation mode.

    Args:
        part: made on the meta device.
        tensors: all of its own, and others that ``ignored`` may name.
        complaint: what a file is not, for the error.
        ignored: see ``misfits``.
        device: where it is put.
        dtype: of its weights.

    Raises:
        CheckpointError: tensors are missing, unknown or of another shape.
    """
    wanted = shapes_of(part.state_dict())
    if wrong := misfits(shapes_of(tensors), wanted, ignored):
        raise CheckpointError(f"{complaint} ({wrong})")
    part.load_state_dict({n: tensors[n].to(device, dtype) for n in wanted}, assign=True)
    return part.eval().requires_grad_(False)


def completed(
    tensors: Mapping[str, Tensor], wanted: Mapping[str, tuple[int, ...]], name: str
) -> dict[str, Tensor]:
    """Return the wanted tensors; those that are missing are untrained, as the parents leave them.

    What was missing and what is not wanted is logged as a warning.

    Args:
        tensors: as read.
        wanted: shape by tensor.
        name: of the model, for the warning.
    """
    made, draw = dict[str, Tensor](), torch.Generator().manual_seed(0)
    for key in sorted(set(wanted) - set(tensors)):
        shape = wanted[key]
        made[key] = 0.02 * torch.randn(shape, generator=draw)
        if len(shape) == 1 or ".lora_B." in key:
            is_norm = key.endswith("weight") and len(shape) == 1
            made[key] = torch.ones(shape) if is_norm else torch.zeros(shape)
    others = sorted(set(tensors) - set(wanted))
    if made or others:
        text = "%s: weights=partial: %d tensors are untrained (%s), %d are not read (%s)"
        log.warning(text, name, len(made), _some(list(made)), len(others), _some(others))
    return {key: tensors[key] if key in tensors else made[key] for key in wanted}


def misfits(
    found: Mapping[str, tuple[int, ...]],
    wanted: Mapping[str, tuple[int, ...]],
    ignored: re.Pattern[str],
) -> str:
    """Describe in one line all that is wrong with a checkpoint; empty where nothing is.

    Args:
        found: shape by tensor.
        wanted: shape by tensor.
        ignored: names of tensors that may be there and are never read.
    """
    missing = sorted(set(wanted) - set(found))
    unknown = sorted(n for n in set(found) - set(wanted) if not ignored.fullmatch(n))
    shaped = [
        f"{name} {found[name]} for {shape}"
        for name, shape in sorted(wanted.items())
        if found.get(name, shape) != shape
    ]
    kinds = {"missing": missing, "of another shape": shaped, "unknown": unknown}
    return "; ".join(
        f"{len(names)} {kind}: {_some(names)}" for kind, names in kinds.items() if names
    )


def _some(names: list[str]) -> str:
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return ", ".join(names[:NAMED]) + more
