"""Fixtures of the parent's tests: the tiny checkpoint, its tensors, and the model on top of it."""

import numpy as np
import pytest

from streammem.models.videollamb.options import ParentOptions
from streammem.models.videollamb.published import ParentFile, open_model
from tests.models.videollamb import published


@pytest.fixture(scope="session")
def tensors():
    return published.weights()


@pytest.fixture(scope="session")
def w(tensors):
    """The tensors as float64 arrays, for the references."""
    return {name: tensor.numpy().astype(np.float64) for name, tensor in tensors.items()}


@pytest.fixture(scope="session")
def folder(tensors, tmp_path_factory):
    return published.write(tmp_path_factory.mktemp("published") / "videollamb", tensors)


@pytest.fixture(scope="session")
def opened(folder, keys):
    """Open the tiny checkpoint with options."""

    def opened(**options):
        said = ParentFile(weights=str(folder), options=ParentOptions(**published.OPTIONS | options))
        return open_model("tiny", said, keys)

    return opened


@pytest.fixture(scope="session")
def model(opened):
    return opened()
