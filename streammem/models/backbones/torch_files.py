"""Published checkpoints as torch files (``.pth``): opened without running what they may hold.

state = read_torch(Path("finetune.pth"))           # tensors by name, memory-mapped
wrong = misfits({n: tuple(t.shape) for n, t in state.items()}, wanted, re.compile("..."))
"""

import pickle
import re
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from streammem.errors import BackboneError, CheckpointError

NAMED = 12  # tensors that a list of misfits names, of each kind


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
