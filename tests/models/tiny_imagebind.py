"""A tiny ImageBind in the published layout: its file of weights, and a vocabulary of byte pairs."""

import gzip
import math

import torch

from streammem.models.backbones.imagebind import (
    ImageBindAudio,
    ImageBindConfig,
    ImageBindText,
    ImageBindTextConfig,
)
from streammem.models.sound_events import VOCABULARY, WEIGHTS

MERGES = ("a p", "ap p", "app l", "a u", "s e</w>", "d o", "do g</w>", "b a", "r k", "rk s</w>")
WORDS = 512 + len(MERGES) + 2


def write(folder, *, seed=0, without=()):
    """Write both files; tensors whose names begin with one of ``without`` are left out."""
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(seed)
    sizes = {"width": 64, "layers": 1, "mlp": 32, "out": 16}
    ears = ImageBindAudio(ImageBindConfig(**sizes, heads=1, kernel=40, stride=30))
    text = ImageBindText(ImageBindTextConfig(**sizes, heads=1, words=WORDS, length=12))
    tensors = ears.state_dict() | text.state_dict()
    for name, value in tensors.items():
        if "mask" not in name and "scale" not in name:
            tensors[name] = value + 0.3 * torch.randn_like(value)
    tensors["modality_postprocessors.text.1.log_logit_scale"] = torch.tensor(math.log(90.0))
    tensors["modality_heads.vision.2.weight"] = torch.zeros(2, 2)  # of another sense
    kept = {name: v for name, v in tensors.items() if not name.startswith(tuple(without) or "-")}
    torch.save(kept, folder / WEIGHTS)
    with gzip.open(folder / VOCABULARY, "wt", encoding="utf-8") as file:
        file.write("\n".join(["a heading", *MERGES]) + "\n")
    return folder
