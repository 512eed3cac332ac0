"""Safetensors of a published checkpoint: one file, or several by an index. Never unpickled.

Shapes are read from the files' headers; tensors one by one when asked for.
"""

import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from streammem.errors import CheckpointError
from streammem.models.backbones.torch_files import misfits

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
MAX_INDEX_BYTES = 16 << 20
PICKLES = ("*.bin", "*.pt", "*.pth")


@dataclass(frozen=True, slots=True, eq=False)
class Shards:
    """Where each tensor of a checkpoint lies, and its shape.

    Attributes:
        folder: of the files.
        files: file name by tensor.
        shapes: by tensor.
    """

    folder: Path
    files: Mapping[str, str]
    shapes: Mapping[str, tuple[int, ...]]

    def tensors(self, names: Mapping[str, str], dtype: torch.dtype | None) -> dict[str, Tensor]:
        """Read tensors.

        Args:
            names: what each is to be called, by its name in the files.
            dtype: of the result; None leaves each as it is stored.

        Raises:
            CheckpointError: a file is corrupt.
        """
        found = {}
        for file in sorted({self.files[name] for name in names}):
            with _opened(self.folder / file) as shard:
                for name, called in names.items():
                    if self.files[name] == file:
                        found[called] = shard.get_tensor(name).to(dtype)
        return found


def open_shards(folder: Path) -> Shards:
    """Read the index, if there is one, and the header of every file.

    Raises:
        CheckpointError: no safetensors, pickled weights only, or a file is missing or corrupt.
    """
    if (folder / INDEX).is_file():
        names = _read_index(folder / INDEX)
    elif (folder / SINGLE).is_file():
        names = {SINGLE}
    else:
        raise CheckpointError(_without_safetensors(folder))
    files: dict[str, str] = {}
    shapes: dict[str, tuple[int, ...]] = {}
    for file in sorted(names):
        with _opened(folder / file) as shard:
            for name in shard.keys():  # noqa: SIM118, it is no mapping
                files[name] = file
                shapes[name] = tuple(shard.get_slice(name).get_shape())
    return Shards(folder, files, shapes)


def check_fit(
    shards: Shards, wanted: Mapping[str, tuple[int, ...]], ignored: re.Pattern[str]
) -> None:
    """Refuse a checkpoint that is not what its model needs, naming all that is wrong at once.

    Args:
        shards: what there is.
        wanted: shape by tensor.
        ignored: names of tensors that may be there and are never read.

    Raises:
        CheckpointError: tensors are missing, of another shape, or unknown.
    """
    wrong = misfits(shards.shapes, wanted, ignored)
    if wrong:
        raise CheckpointError(
            f"{shards.folder}: not a whole VideoLLaMB checkpoint ({wrong}); get it again"
        )


def _read_index(path: Path) -> set[str]:
    """Return the names of the files; what is in them, their headers tell."""
    try:
        if path.stat().st_size > MAX_INDEX_BYTES:
            raise CheckpointError(f"{path}: too large for an index")
        files = set(json.loads(path.read_text())["weight_map"].values())
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(f"{path}: not an index of safetensors; get it again") from error
    # A name with a folder in it could point anywhere.
    if not files or any(not isinstance(f, str) or Path(f).name != f for f in files):
        raise CheckpointError(f"{path}: names files that do not lie beside it; get it again")
    return files


def _without_safetensors(folder: Path) -> str:
    pickles = sorted(path.name for pattern in PICKLES for path in folder.glob(pattern))
    if not pickles:
        return f"{folder}: no {SINGLE} and no {INDEX}; get the checkpoint again"
    return (
        f"{folder}: {pickles[0]} is pickled, and pickles can run code, so they are never opened; "
        "convert it where that does not matter: safetensors.torch.save_file("
        f"torch.load('{pickles[0]}', weights_only=True), '{SINGLE}')"
    )


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    try:
        with safe_open(path, framework="pt") as shard:
            yield shard
    except (OSError, SafetensorError) as error:
        raise CheckpointError(
            f"{path}: missing or corrupt ({error}); get the checkpoint again"
        ) from error
