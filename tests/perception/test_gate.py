import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from streammem.engine.session import Session
from streammem.engine.session_config import SessionConfig
from streammem.engine.watch import watch
from streammem.errors import ConfigError
from streammem.models.tiny.model import VideoModel
from streammem.perception.frames import GRID, PixelGate
from streammem.types import Frame
from tests.sessions import as_kind

STILL = SessionConfig().still
ROOM = np.random.default_rng(0).integers(60, 190, (6, 8, 3)).repeat(30, 0).repeat(40, 1)


class Counting(VideoModel):
    """Counts the pictures that it perceives."""

    def perceive(self, picture):
        self.__dict__["perceived"] = self.__dict__.get("perceived", 0) + 1
        return super().perceive(picture)


@pytest.fixture
def counting(model):
    return as_kind(Counting, model)


def seen_by(counting, pictures, still=STILL):
    """Tell for each picture whether it was encoded."""
    gate, last, told = PixelGate(counting, still), None, []
    for picture in pictures:
        now = gate.encode(picture)
        told.append(now is not last)
        last = now
    assert counting.__dict__["perceived"] == sum(told)
    return told


def noisy(number, deviation=8.0):
    noise = np.random.default_rng(number).normal(0, deviation, ROOM.shape)
    return (ROOM + noise).clip(0, 255).astype(np.uint8)


def test_a_static_camera_is_encoded_once(counting):
    assert seen_by(counting, [noisy(k) for k in range(20)]) == [True] + [False] * 19


def test_zero_encodes_every_frame(counting):
    assert all(seen_by(counting, [noisy(0)] * 3, still=0.0))


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 295), st.integers(0, 155), st.sampled_from([-16, 16]), st.integers(0, 2))
def test_a_square_of_one_percent_is_never_overlooked(left, top, contrast, channel):
    gate = PixelGate(Stub(), STILL)
    first = gate.encode(noisy(0))
    room = noisy(1).astype(np.int16)
    room[top : top + 24, left : left + 24, channel] += contrast  # 0.01 x 180 x 320 pixels
    assert gate.encode(room.clip(0, 255).astype(np.uint8)) is not first


class Stub:
    def perceive(self, picture):
        return None


@pytest.mark.parametrize("step", [0.5, 1.0, 2.0])
def test_a_drift_is_encoded_as_soon_as_it_adds_up(counting, step):
    drift = [(ROOM * 0 + 60 + k * step).astype(np.uint8) for k in range(60)]
    told = seen_by(counting, drift)
    level = None
    for picture, encoded in zip(drift, told, strict=True):
        value = int(picture[0, 0, 0])
        assert encoded == (level is None or abs(value - level) >= STILL)
        level = value if encoded else level


def test_restored_from_a_snapshot_it_compares_with_what_was_encoded_then():
    gate, other = PixelGate(Stub(), STILL), PixelGate(Stub(), STILL)
    bright = gate.encode(noisy(0))
    saved = gate.snapshot()
    dark = gate.encode(noisy(1) // 4)
    other.restore(saved)
    assert other.encode(noisy(2)) is bright and gate.encode(noisy(2) // 4) is dark
    assert other.encode(noisy(2) // 4) is not dark
    gate.restore(None)
    assert gate.encode(noisy(2) // 4) is not dark


def test_a_picture_that_the_encoder_fails_on_is_not_remembered():
    class Failing:
        def perceive(self, picture):
            raise RuntimeError

    gate = PixelGate(Stub(), STILL)
    first = gate.encode(noisy(0))
    failing = PixelGate(Failing(), STILL)
    failing.restore(first)
    with pytest.raises(RuntimeError):
        failing.encode(noisy(1) // 4)
    assert failing.encode(noisy(2)) is first


def frames_of(pictures):
    return [Frame(picture, k / 2, 0.5, k) for k, picture in enumerate(pictures)]


def test_a_session_encodes_a_still_scene_once_and_a_new_one_again(counting):
    dark = [noisy(k) // 4 for k in range(8)]
    frames = frames_of([noisy(k) for k in range(8)] + dark)
    session = Session(counting)
    for frame in frames:
        session.push(frame)
    assert counting.__dict__["perceived"] == 2
    assert session.num_frames == 16


def test_with_the_gate_one_by_one_equals_watched(model):
    pictures = [noisy(k) // (1 + k // 9 % 2 * 3) for k in range(36)]
    pushed, watched = Session(model), Session(model)
    closed = [s for frame in frames_of(pictures) for s in pushed.push(frame)] + [*pushed.flush()]
    list(watch(watched, frames_of(pictures)))
    assert len(closed) == len(pushed.memory) == len(watched.memory) == 4
    assert torch.equal(pushed.recurrent, watched.recurrent)


def test_two_sessions_do_not_share_what_was_encoded(counting):
    sessions = Session(counting), Session(counting)
    for session in sessions:
        session.push(frames_of([noisy(0)])[0])
    assert counting.__dict__["perceived"] == 2


@pytest.mark.parametrize("shape", [(48, 64), (GRID, GRID)])  # the latter is its own thumbnail
def test_a_frame_may_be_overwritten_once_it_was_pushed(model, shape):
    pixels = noisy(0)[: shape[0], : shape[1]].copy()
    session = Session(model)
    session.push(Frame(pixels, 0.0, 0.5, 0))
    picture = session.open_frames[0].picture.copy()
    thumbnail = session.snapshot().encoded.thumbnail.copy()
    pixels[:] = 0
    assert np.array_equal(session.open_frames[0].picture, picture)
    assert np.array_equal(session.snapshot().encoded.thumbnail, thumbnail)


@pytest.mark.parametrize("still", [-1.0, 256.0, float("nan")])
def test_a_bound_that_cannot_be_meant_is_refused(still):
    with pytest.raises(ConfigError, match="levels"):
        dataclasses.replace(SessionConfig(), still=still)


def test_on_a_fixed_camera_a_small_thing_makes_a_scene_of_its_own(model):
    """With ``fixed`` only: the whole picture hardly changes by it."""
    room = np.full((180, 320, 3), (200, 30, 30), np.uint8)
    with_thing = room.copy()
    with_thing[60:120, 120:180] = (30, 30, 220)
    pictures = [room] * 35 + [with_thing] * 12 + [room] * 10
    starts = {}
    for fixed in (False, True):
        session = Session(model, SessionConfig(fixed=fixed))
        for number, picture in enumerate(pictures):
            session.push(Frame(picture, float(number), 1.0, number))
        session.flush()
        starts[fixed] = [row.start for row in session.memory.entries()]
    assert starts == {False: [0.0], True: [0.0, 35.0, 47.0]}
