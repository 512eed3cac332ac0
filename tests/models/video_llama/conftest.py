"""Fixtures of Video-LLaMA's tests: the tiny checkpoint, its tensors, and the model on top of it."""

import functools

import numpy as np
import pytest

from streammem.models import checkpoint
from streammem.models.published import find
from streammem.models.video_llama.published import open_model
from tests.models.video_llama import published


@pytest.fixture(scope="session")
def files():
    return published.weights()


@pytest.fixture(scope="session")
def w(files):
    """All tensors by the parent's names, as float64 arrays, for the references."""
    named = {f"visual_encoder.{n}": v for n, v in files["eva_vit_g.pth"].items()}
    named |= {f"audio_encoder.{n}": v for n, v in files["imagebind_huge.pth"].items()}
    for file in ("blip2_pretrained_flant5xxl.pth", "pictures.pth", "sound.pth"):
        named |= files[file]
    return {name: value.double().numpy().astype(np.float64) for name, value in named.items()}


@pytest.fixture(scope="session")
def folder(files, tmp_path_factory):
    return published.write(tmp_path_factory.mktemp("video_llama") / "tiny", files)


@pytest.fixture(scope="session")
def opened(folder, keys, tmp_path_factory):
    """Open the tiny checkpoint with options; with the same ones it is the same model."""

    @functools.cache
    def opened(*, listens=True, **options):
        path = tmp_path_factory.mktemp("toml") / "model.toml"
        said = find(published.toml(folder, path, listens=listens, **options), checkpoint.CONFIGS)
        return open_model("tiny", said, keys)

    return opened


@pytest.fixture(scope="session")
def model(opened):
    return opened()
