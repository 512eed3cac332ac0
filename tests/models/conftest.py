"""Fixtures of the published models' tests: what lends them its keys."""

import pytest

from streammem.models import checkpoint
from tests.tiny import tiny_model


@pytest.fixture(scope="session")
def keys():
    return tiny_model()


@pytest.fixture
def tiny(keys, monkeypatch):
    """Every model of ours is the tiny one; a published one is what it is."""
    monkeypatch.setattr(checkpoint, "load_own", lambda name="", *, device="cpu": keys)
