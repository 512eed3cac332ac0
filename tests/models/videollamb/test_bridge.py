import numpy as np
import pytest
import torch

from streammem.models.videollamb.bridge import ParentBridge, ParentBridgeConfig, fresh, pool
from tests.models.videollamb import reference
from tests.models.videollamb.published import MLP, D, L, M

EXACT = 1e-10  # float64 against float64: only the order of sums differs
SIZES = ParentBridgeConfig(width=D, language_width=L, memory_tokens=M, mlp=MLP)


@pytest.fixture(scope="module")
def bridge(tensors):
    bridge = ParentBridge(SIZES).double().eval()
    own = {f"model.mm_projector.{key}": key for key in bridge.state_dict()}
    bridge.load_state_dict({key: tensors[name].double() for name, key in own.items()})
    return bridge


def rows(count, seed=0):
    return np.random.default_rng(seed).standard_normal((count, D))


def tensor(array):
    return torch.from_numpy(array)[None]


def test_a_bridge_layer_equals_the_reference(bridge, w):
    segment, memory = rows(18, 1), rows(M, 2)
    read = bridge.read(tensor(segment), tensor(memory))
    written, hidden = reference.read_segment(segment, memory, w)
    np.testing.assert_allclose(read.memory[0].detach(), written, atol=EXACT)
    np.testing.assert_allclose(read.hidden[0].detach(), hidden, atol=EXACT)


def test_memory_and_segment_attend_to_each_other(bridge):
    segment, memory = tensor(rows(9, 1)), tensor(rows(M, 2))
    read = bridge.read(segment, memory)
    assert not torch.allclose(bridge.read(segment, 2 * memory).hidden, read.hidden, atol=1e-3)
    assert not torch.allclose(bridge.read(2 * segment, memory).memory, read.memory, atol=1e-3)


def test_retrieval_equals_the_reference(bridge, w):
    memory, cache = rows(M, 3), rows(3 * M, 4)
    recalled = bridge.recall(tensor(memory), tensor(cache))[0].detach()
    np.testing.assert_allclose(recalled, reference.retrieve(memory, cache, w), atol=EXACT)


def test_retrieval_does_not_know_the_order_of_the_cache(bridge):
    memory, cache = rows(M, 3), rows(3 * M, 4)
    recalled = bridge.recall(tensor(memory), tensor(cache))
    again = bridge.recall(tensor(memory), tensor(cache[::-1].copy()))
    torch.testing.assert_close(recalled, again, atol=EXACT, rtol=0)


def test_the_head_equals_the_reference_and_ends_in_a_gelu(bridge, w):
    hidden = rows(50, 5)
    shown = bridge.to_language(torch.from_numpy(hidden)).detach().numpy()
    np.testing.assert_allclose(shown, reference.project(hidden, w), atol=EXACT)
    assert -0.17 < shown.min() < -0.1


@pytest.mark.parametrize(("grid", "side"), [(16, 12), (24, 14), (4, 3), (5, 5)])
def test_pooling_equals_the_reference_and_leaves_the_class_token_out(grid, side):
    features = np.random.default_rng(0).standard_normal((2, 1 + grid**2, 6))
    pooled = pool(torch.from_numpy(features), side).numpy()
    for frame, result in zip(features, pooled, strict=True):
        np.testing.assert_allclose(result, reference.pool(frame[1:], side), atol=EXACT)


def test_a_chain_of_segments_equals_the_reference(bridge, w):
    segments = [rows(n, n) for n in (9, 27, 18, 9)]
    for cache_hidden in (False, True):
        memory, cache = bridge.initial_memory(), []
        _, recalled = reference.bridge_video(segments, w, cache_hidden=cache_hidden)
        for segment, expected in zip(segments, recalled, strict=True):
            read = bridge.read(tensor(segment), memory)
            cache.append(read.hidden if cache_hidden else read.memory)
            memory = bridge.recall(read.memory, torch.cat(cache, 1))
            np.testing.assert_allclose(memory[0].detach(), expected, atol=EXACT)


def test_slots_that_start_equal_stay_equal_and_distinct_ones_do_not():
    segment = torch.randn(1, 9, D, generator=torch.Generator().manual_seed(0))
    for initial, equal in (("zeros", True), ("distinct", False)):
        torch.manual_seed(0)
        bridge = fresh(SIZES, initial).eval()
        read = bridge.read(segment, bridge.initial_memory())
        memory = bridge.recall(read.memory, read.memory)[0]
        assert torch.allclose(memory, memory[:1].expand_as(memory), atol=1e-6) is equal


def test_segments_are_told_apart_by_the_position_table_and_its_last_row_stands_for_all_further():
    torch.manual_seed(0)
    bridge = fresh(ParentBridgeConfig(D, L, M, mlp=MLP, positions=3)).eval()
    segment, memory = torch.randn(1, 9, D), bridge.initial_memory()
    hidden = [bridge.read(segment, memory, number).hidden for number in (0, 1, 2, 7)]
    assert not torch.allclose(hidden[0], hidden[1], atol=1e-3)
    assert not torch.allclose(hidden[1], hidden[2], atol=1e-3)
    assert torch.equal(hidden[2], hidden[3])
    shifted = segment + bridge.abs_vid_pe.weight[1]
    plain = fresh(SIZES).eval()
    plain.load_state_dict({k: v for k, v in bridge.state_dict().items() if "abs" not in k})
    assert torch.equal(hidden[1], plain.read(shifted, memory).hidden)


def test_dropout_is_for_training_only(bridge):
    segment, memory = tensor(rows(9, 1)), tensor(rows(M, 2))
    first = bridge.read(segment, memory).hidden
    assert torch.equal(first, bridge.read(segment, memory).hidden)
    bridge.train()
    torch.manual_seed(0)
    noisy = bridge.read(segment, memory).hidden
    bridge.eval()
    assert not torch.allclose(first, noisy, atol=1e-3)
