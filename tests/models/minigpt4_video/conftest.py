"""Fixtures of the parent's tests: the tiny files, and the model on top of them."""

import pytest

from streammem.models import checkpoint
from streammem.models.minigpt4_video.published import find, open_model
from tests.models.minigpt4_video import published
from tests.tiny import tiny_model


@pytest.fixture(scope="session")
def files(tmp_path_factory):
    """The TOML file of the tiny model."""
    return published.write(tmp_path_factory.mktemp("minigpt4"))


@pytest.fixture(scope="session")
def keys():
    return tiny_model()


@pytest.fixture(scope="session")
def opened(files, keys):
    """Open the tiny model with options."""

    def opened(**options):
        said = find(files, checkpoint.CONFIGS)
        for name, value in options.items():
            object.__setattr__(said.options, name, value)
        return open_model("tiny", said, keys)

    return opened


@pytest.fixture(scope="session")
def model(opened):
    return opened()


@pytest.fixture
def tiny(keys, monkeypatch):
    """Every model of ours is the tiny one; a parent is what it is."""
    monkeypatch.setattr(checkpoint, "load_own", lambda name="", *, device="cpu": keys)
