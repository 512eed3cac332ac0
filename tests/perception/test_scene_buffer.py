import io

import numpy as np
import pytest
import torch
from PIL import Image

from streammem.memory.entry import MAX_KEYFRAME_BYTES
from streammem.perception.frames import (
    BRIDGE_FRAMES,
    BufferedFrame,
    Perceived,
    SceneBuffer,
    SceneBufferState,
    keyframe,
    places,
)
from streammem.types import Frame


def held(number, *, key=(1.0, 0.0), picture=None):
    pixels = np.zeros((2, 2, 3), np.uint8) if picture is None else picture
    return BufferedFrame(number, float(number), number + 1.0, np.array(key), torch.zeros(1), pixels)


def push(buffer):
    """Push the next of equal frames, one a second."""
    pixels = np.zeros((2, 2, 3), np.uint8)
    seen = Perceived(np.zeros(3), torch.zeros(1), np.array((1.0, 0.0)))
    buffer.push(Frame(pixels, float(buffer.num_frames), 1.0, buffer.num_frames), seen)


def full(buffer):
    assert all((f.patches is None) == (f.picture is None) for f in buffer.frames)
    return [f.number for f in buffer.frames if f.patches is not None]


@pytest.mark.parametrize("lag", [1, 7])
def test_thinning_frame_by_frame_equals_thinning_at_once(lag):
    frames = tuple(held(number) for number in range(5, 405))
    buffer, whole = SceneBuffer(lag), SceneBuffer(lag)
    buffer.restore(SceneBufferState(5))
    for count in range(1, len(frames) + 1):
        push(buffer)
        # Nothing of it has been thinned before the last frame comes.
        whole.restore(SceneBufferState(4 + count, frames[: count - 1]))
        push(whole)
        numbers = full(buffer)
        assert numbers == full(whole)
        assert [f.number for f in buffer.frames] == [f.number for f in frames[:count]]
        assert numbers[0] == 5
        # The newest ones, among which a boundary may yet fall, are all there.
        assert numbers[-min(lag, count) :] == [f.number for f in frames[:count]][-lag:]
        older = [n for n in numbers if n < 5 + count - lag]
        assert len(older) <= 2 * BRIDGE_FRAMES
        assert count - lag > 2 * BRIDGE_FRAMES or len(older) == max(0, count - lag)
        assert count - lag <= BRIDGE_FRAMES or len(older) >= BRIDGE_FRAMES
        assert len(set(np.diff(older))) <= 1  # evenly


def test_the_last_frames_are_kept_besides_with_their_patches_whatever_scene_they_are_of():
    buffer, without = SceneBuffer(lag=1, now_frames=3), SceneBuffer(lag=1)
    assert buffer.newest is None
    for number in range(60):
        push(buffer)
        push(without)
        assert buffer.newest.number == without.newest.number == number
        if number % 25 == 24:
            buffer.drop(len(buffer.frames) - 1)
        assert [f.number for f in buffer.now] == list(range(max(0, number - 2), number + 1))
        assert all(f.patches is not None for f in buffer.now)
    assert without.now == ()
    for each in (buffer, without):
        each.drop(len(each.frames))
        assert each.frames == ()
    assert buffer.newest.number == 59 and without.newest is None


@pytest.mark.parametrize("cut", [0, 9, 40, 41, 70])
def test_restored_from_a_snapshot_it_goes_on_as_it_would_have(cut):
    first, second = SceneBuffer(3, now_frames=2), SceneBuffer(3, now_frames=2)
    for _ in range(cut):
        push(first)
    saved = first.snapshot()
    push(second)  # what it did before does not matter
    second.restore(saved)
    for buffer in (first, second):
        buffer.drop(5)
        for _ in range(60):
            push(buffer)
    assert first.num_frames == second.num_frames == cut + 60
    assert full(first) == full(second)
    assert [f.number for f in first.frames] == [f.number for f in second.frames]
    assert [f.number for f in first.now] == [f.number for f in second.now]
    assert len(saved.frames) == cut


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
    buffer = SceneBuffer(lag=1)
    buffer.restore(SceneBufferState(4))
    buffer.push(frame, seen)
    (kept,) = buffer.frames
    assert kept.picture.shape == (*small, 3)
    assert (kept.number, kept.time, kept.end) == (4, 2.0, 2.5)
    assert not np.shares_memory(kept.picture, frame.pixels)
