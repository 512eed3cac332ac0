import io

import numpy as np
import pytest
import torch
from PIL import Image

from streammem.memory.entry import MAX_KEYFRAME_BYTES
from streammem.perception.perceiver import Perceived
from streammem.perception.scene_buffer import BRIDGE_FRAMES, Held, hold, keyframe, places, thinned
from streammem.types import Frame


def held(number, *, key=(1.0, 0.0), picture=None):
    pixels = np.zeros((2, 2, 3), np.uint8) if picture is None else picture
    return Held(number, float(number), number + 1.0, np.array(key), torch.zeros(1), pixels)


@pytest.mark.parametrize("lag", [1, 7])
def test_thinning_frame_by_frame_equals_thinning_at_once(lag):
    frames = tuple(held(number) for number in range(5, 405))
    kept = ()
    for count, frame in enumerate(frames, start=1):
        kept = thinned((*kept, frame), lag)
        at_once = thinned(frames[:count], lag)
        numbers = [f.number for f in kept if f.patches is not None]
        assert numbers == [f.number for f in at_once if f.patches is not None]
        assert [f.number for f in kept] == [f.number for f in frames[:count]]
        assert numbers[0] == 5
        # The newest ones, among which a boundary may yet fall, are all there.
        assert numbers[-min(lag, count) :] == [f.number for f in frames[:count]][-lag:]
        older = [n for n in numbers if n < 5 + count - lag]
        assert len(older) <= 2 * BRIDGE_FRAMES
        assert count - lag <= BRIDGE_FRAMES or len(older) >= BRIDGE_FRAMES
        assert len(set(np.diff(older))) <= 1  # evenly


def test_places_lie_between_the_first_and_the_last_frame():
    assert places([held(4), held(5), held(8)]) == [0.0, 0.25, 1.0]
    assert places([held(4)]) == [0.5]
    assert places([held(4), held(4)]) == [0.5, 0.5]


def test_a_keyframe_is_the_frame_nearest_to_the_key():
    colours = [np.full((8, 8, 3), c, np.uint8) for c in (0, 100, 200)]
    keys = ((1.0, 0.0), (0.6, 0.8), (0.0, 1.0))
    frames = [held(n, key=keys[n], picture=colours[n]) for n in range(3)]
    jpeg = keyframe(frames, np.array((0.6, 0.8)))
    assert abs(np.asarray(Image.open(io.BytesIO(jpeg))).mean() - 100) < 3


@pytest.mark.parametrize("shape", [(320, 320), (1, 320), (320, 1), (180, 320)])
def test_a_keyframe_of_pure_noise_fits_its_row(shape):
    noise = np.random.default_rng(0).integers(0, 256, (*shape, 3), np.uint8)
    jpeg = keyframe([held(0, picture=noise)], np.array((1.0, 0.0)))
    assert 0 < len(jpeg) <= MAX_KEYFRAME_BYTES


@pytest.mark.parametrize(
    ("shape", "small"), [((720, 1280), (180, 320)), ((1280, 720), (320, 180)), ((4, 6), (4, 6))]
)
def test_a_frame_is_held_small(shape, small):
    frame = Frame(np.zeros((*shape, 3), np.uint8), 2.0, 0.5, 17)
    seen = Perceived(np.zeros(3), torch.zeros(9, 8).half(), np.ones(4))
    kept = hold(4, frame, seen)
    assert kept.picture.shape == (*small, 3)
    assert (kept.number, kept.time, kept.end) == (4, 2.0, 2.5)
    assert not np.shares_memory(kept.picture, frame.pixels)
