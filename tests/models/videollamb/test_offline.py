import dataclasses

import numpy as np
import pytest
import torch

from streammem.models.videollamb.offline import content, read, starts_of, to_groups
from tests.models.videollamb import reference
from tests.models.videollamb.published import GROUP, LAYERS, SIDE

CLOSE = 2e-3  # float32 through three layers of towers, a bridge and a retrieval


def walk(count, seed=0, cuts=()):
    """[T, D] embeddings that drift, and jump at ``cuts``."""
    rng = np.random.default_rng(seed)
    steps = 0.3 * rng.standard_normal((count, 24))
    steps[[0, *cuts]] = 6 * rng.standard_normal((1 + len(cuts), 24))
    return steps.cumsum(0)


def pictures(count, seed=0):
    shape = (count, SIDE, SIDE, 3)
    return np.random.default_rng(seed).integers(0, 256, shape).astype(np.uint8)


@pytest.mark.parametrize("cuts", ["top3", "threshold"])
@pytest.mark.parametrize("count", [8, 16, 64, 200])
def test_segmentation_equals_the_reference(opened, cuts, count):
    model = opened(cuts=cuts)
    for seed in range(8):
        cls = walk(count, seed, cuts=(count // 3,) if seed % 2 else ())
        starts = starts_of(model, cls)
        lasts = [start - 1 for start in [*starts[1:], count]]
        assert lasts == reference.segment(cls, k=3 if cuts == "top3" else None)
        assert starts[0] == 0 and len(starts) == 4 if cuts == "top3" else len(starts) <= 16


def test_the_parents_rule_invents_cuts_in_two_scenes_and_ours_finds_the_one(opened):
    cls = walk(60, cuts=(30,))
    cls -= cls.mean(0)
    assert len(starts_of(opened(cuts="top3"), cls)) == 4
    assert starts_of(opened(cuts="streaming"), cls) == [0, 30]


@pytest.mark.parametrize("cache", ["memory", "hidden"])
def test_a_video_read_the_parents_way_equals_the_reference(opened, w, cache):
    frames = pictures(3 * GROUP)
    model = opened(cuts="top3", groups="stream", cache=cache)
    reading = read(model, torch.from_numpy(frames))
    prefix = "model.video_tower.video_tower."
    features = reference.tower(frames, w, prefix, layers=LAYERS, group=GROUP)
    lasts = reference.segment(features[:, 0], k=3)
    assert [start - 1 for start in reading.starts[1:]] == lasts[:-1]
    segments = [
        np.concatenate([reference.pool(features[i, 1:], 3) for i in reference.frames_of(*span)])
        for span in zip(reading.starts, lasts, strict=True)
    ]
    shown, recalled = reference.bridge_video(segments, w, cache_hidden=cache == "hidden")
    for mine, expected in zip(reading.shown, shown, strict=True):
        np.testing.assert_allclose(mine, expected, atol=CLOSE)
    np.testing.assert_allclose(reading.recalled, np.stack(recalled), atol=CLOSE)


def test_a_long_segment_shows_eight_frames_cut_off_to_whole_numbers(opened):
    model = opened(groups="stream")
    frames = torch.from_numpy(pictures(24))
    whole = read(model, frames, starts=[0])
    chosen = reference.frames_of(0, 23)
    assert chosen == [0, 3, 6, 9, 13, 16, 19, 23]
    features = model.video_tower(frames)[chosen]
    again = model.bridge.read(
        torch.nn.functional.adaptive_avg_pool2d(
            features[:, 1:].unflatten(1, (4, 4)).permute(0, 3, 1, 2), 3
        ).permute(0, 2, 3, 1).reshape(1, -1, features.shape[-1]),
        model.bridge.initial_memory(),
    )  # fmt: skip
    torch.testing.assert_close(whole.shown[0], model.bridge.to_language(again.hidden[0]))


def test_the_language_model_sees_the_last_segment_all_or_the_memories(opened):
    frames, per_frame = torch.from_numpy(pictures(16)), 9
    model = opened(groups="stream", sees="last")
    reading = read(model, frames, starts=[0, 5, 9])

    def seen(**options):
        changed = dataclasses.replace(model.options, **options)
        return content(dataclasses.replace(model, options=changed), reading)

    assert [len(part) for part in seen(sees="last")] == [7 * per_frame]
    assert [len(part) for part in seen(sees="all")] == [n * per_frame for n in (5, 4, 7)]
    few = seen(sees="all", max_visual_tokens=3 * 2 * per_frame)
    assert [len(part) for part in few] == [2 * per_frame] * 3
    (memories,) = seen(sees="memory")
    assert len(memories) == 3 * 4
    torch.testing.assert_close(memories[4:8], model.bridge.to_language(reading.recalled[1]))


@pytest.mark.parametrize(("count", "groups"), [(1, 8), (3, 8), (8, 8), (13, 8), (16, 16), (30, 24)])
def test_frames_are_made_into_groups_of_eight(count, groups):
    chosen = to_groups(count)
    assert len(chosen) == groups
    assert chosen[0] == 0 and chosen[-1] == count - 1 and chosen == sorted(chosen)
