import numpy as np
import pytest
import torch

from streammem.memory.cache import CacheConfig
from streammem.memory.memory import Memory
from tests.memory.entries import DIM, TOKENS, make, unit

NONE = np.empty((0, 0))


@pytest.fixture(params=["ram", "disk"])
def remember(request, tmp_path):
    """A memory for tokens of a shape."""
    opened = []

    def of(shape):
        if request.param == "ram":
            opened.append(Memory(CacheConfig(DIM, shape)))
        else:
            opened.append(
                Memory.open(
                    tmp_path / "a.mem", "tiny-1", key_dim=DIM, token_shape=shape, max_segments=10
                )
            )
        return opened[-1]

    yield of
    for memory in opened:
        memory.close()


@pytest.mark.parametrize("shape", [(0, 0), (0, 6), TOKENS])
def test_a_segment_without_tokens_has_none_of_their_width(remember, shape):
    memory = remember(shape)
    memory.append(make(0, tokens=NONE), torch.zeros(1, 1))
    assert memory.tokens(0).shape == (0, shape[1])
    assert memory.related_tokens(unit(1)[0], 4).shape == (0, shape[1])


def test_tokens_are_the_same_in_ram_and_on_disk(remember):
    memory = remember(TOKENS)
    tokens = np.random.default_rng(0).normal(size=TOKENS)
    memory.append(make(0, tokens=tokens), torch.zeros(1, 1))
    assert memory.tokens(0).dtype == torch.float32
    np.testing.assert_array_equal(memory.tokens(0).numpy(), make(0, tokens=tokens).tokens)
