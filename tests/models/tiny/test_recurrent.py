import itertools

import pytest
import torch
import torch.nn.functional as F

from streammem.models.checkpoint import PRESETS, read_config, read_tensors
from streammem.models.tiny.bridge import FREE_SLOT, MemoryBridge, empty_memory, update_memory
from streammem.perception.frames import SegmentFrames
from tests.tiny import film, tiny_model

SLOTS, DIM = 4, 8


def entries(number, seed=0):
    return torch.randn(number, DIM, generator=torch.Generator().manual_seed(seed))


def memory_of(seen, slots=SLOTS):
    """A memory after segments of one token each, [N, D]."""
    memory = empty_memory(slots, seen.shape[1])
    for entry in seen:
        memory = update_memory(memory, entry[None])
    return memory


def slot_distances(slots):
    cosines = F.normalize(slots, dim=-1)
    return (1 - cosines @ cosines.T)[~torch.eye(len(slots), dtype=torch.bool)]


def cheapest(rows):
    """Every pair, one at a time."""
    costs = {}
    for i, j in itertools.combinations(range(len(rows)), 2):
        (a, m), (b, n) = ((row[:-1].double(), row[-1].double()) for row in rows[[i, j]])
        costs[i, j] = (a - b).square().sum() * (1 + (m * n).log()) if m * n else FREE_SLOT * len(a)
    return min(costs, key=costs.get)


def test_the_two_that_lose_least_are_joined_and_the_others_stay_to_the_bit():
    memory = memory_of(entries(9))
    for entry in entries(30, seed=1):
        rows = torch.cat([memory, F.pad(entry, (0, 1), value=1.0)[None]])
        i, j = cheapest(rows)
        folded = update_memory(memory, entry[None])
        (a, m), (b, n) = (rows[i, :-1], rows[i, -1]), (rows[j, :-1], rows[j, -1])
        assert torch.allclose(folded[i, :-1], (m * a + n * b) / (m + n), atol=1e-6)
        assert folded[i, -1] == m + n
        others = [k for k in range(len(rows)) if k not in (i, j)]
        assert torch.equal(folded[[k - (k > j) for k in others]], rows[others])
        memory = folded


def test_a_segment_enters_as_its_mean_token():
    tokens = entries(5)
    assert torch.allclose(update_memory(empty_memory(SLOTS, DIM), tokens)[-1, :-1], tokens.mean(0))


def test_nothing_is_lost_on_average():
    """Counts add up to the segments, and the slots' weighted mean is the mean of all."""
    seen = entries(200)
    slots, counts = memory_of(seen).split([DIM, 1], dim=-1)
    assert counts.sum() == 200
    assert torch.allclose((slots * counts).sum(0) / 200, seen.mean(0), atol=1e-5)


def test_as_many_unlike_segments_as_slots_are_kept_as_they_are_in_order():
    seen = entries(SLOTS)
    kept = memory_of(seen)
    assert torch.equal(kept[:, :-1], seen)
    assert kept[:, -1].tolist() == [1.0] * SLOTS


def test_slots_stand_in_the_order_of_the_first_segment_in_each():
    # Four far apart, then each of them again: the first ones stay where they are.
    far = 10 * torch.eye(DIM)[:SLOTS]
    kept = memory_of(torch.cat([far, far.flip(0) + 0.01]))
    assert kept[:, :-1].argmax(1).tolist() == [0, 1, 2, 3]
    assert kept[:, -1].tolist() == [2.0] * SLOTS


def test_a_scene_that_goes_on_takes_no_second_slot():
    still = entries(1) + 0.01 * entries(50, seed=1)
    kept = memory_of(still)
    assert kept[:, -1].tolist() == [0.0, 0.0, 0.0, 50.0]


def test_what_was_seen_once_outlives_a_thousand_still_segments():
    """A fixed camera: one event of a minute, then the empty yard for hours."""
    yard, event = entries(2)
    hours = yard + 0.3 * entries(1000, seed=1)
    kept = memory_of(torch.cat([hours[:100], event[None], hours[100:]]))
    assert torch.cosine_similarity(kept[:, :-1], event[None]).max() > 0.99


def test_slots_never_collapse():
    for seed in range(3):
        kept = memory_of(entries(500, seed))
        assert slot_distances(kept[:, :-1]).min() > 0.1


@pytest.mark.parametrize(
    "num_updates", [1_000, pytest.param(5_000, marks=pytest.mark.heavy, id="5000")]
)
def test_a_slot_never_leaves_the_range_of_what_it_saw(num_updates):
    seen = 10 * entries(num_updates)
    kept = memory_of(seen)[:, :-1]
    assert kept.isfinite().all()
    assert (kept <= seen.amax(0) + 1e-4).all() and (kept >= seen.amin(0) - 1e-4).all()


def test_the_shipped_bridges_tokens_are_kept_apart():
    """A photo's own tokens are all alike; what segments leave must not become so."""
    folder = PRESETS["streammem-tiny"]
    prefix = "bridge."
    tensors = {
        k.removeprefix(prefix): v for k, v in read_tensors(folder).items() if k.startswith(prefix)
    }
    shipped = MemoryBridge(read_config(folder).bridge).eval().requires_grad_(False)
    shipped.load_state_dict(tensors)
    config, generator = shipped.config, torch.Generator().manual_seed(0)
    memory = empty_memory(config.memory_tokens, config.dim)
    for _ in range(120):
        cells = torch.randn(1, 1, 1, config.patch_dim, generator=generator)
        patches = shipped.patch_mean + shipped.patch_std * cells.expand(-1, -1, config.patches, -1)
        memory = update_memory(memory, shipped.encode(patches, torch.tensor([[0.5]]))[0])
    assert slot_distances(memory[:, :-1]).min() > 0.05


def test_what_a_segment_leaves_never_depends_on_the_memory():
    """A caption cannot leak an earlier scene."""
    model = tiny_model()
    scene = SegmentFrames(
        0, [model.perceive(frame.pixels).patches for frame in film(("red", 3))], [0, 0.5, 1]
    )
    fresh = model.encode_segment(scene, model.initial_memory(), None)
    later = model.encode_segment(scene, memory_of(torch.randn(9, 32)), None)
    assert torch.equal(later.tokens, fresh.tokens)
    assert torch.equal(fresh.memory, update_memory(model.initial_memory(), fresh.tokens))
    assert not torch.equal(later.memory, fresh.memory)
