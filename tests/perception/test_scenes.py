"""Laws of the scenes of a file: streamed as they settle, and equal to what the whole would give."""

import pickle
from dataclasses import replace
from itertools import pairwise
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from streammem.errors import SourceError, TruncatedError
from streammem.perception import scenes, scenetilling, signature
from streammem.perception.scenes import (
    EMBEDDED_FPS,
    KEYFRAMES_ALIKE,
    SceneFinder,
    find_scenes,
    for_keyframes,
)
from streammem.perception.scenetilling import SceneTilling, SceneTillingConfig
from streammem.types import Frame, Notice, Segment
from tests.tiny import COLOURS, moving_square, tiny_model

FPS = 8


class Source:
    """Frames, then perhaps an error."""

    name, duration = "film.mp4", None

    def __init__(self, frames, error=None, end=None):
        self._frames, self._error, self.end = frames, error, end
        self.num_given, self.is_closed = 0, False

    def __iter__(self):
        for frame in self._frames:
            self.num_given += 1
            yield frame
        if self._error:
            raise self._error

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.is_closed = True


@pytest.fixture(scope="module")
def model():
    return tiny_model()


def timed(pictures, fps=FPS, start=0.0):
    for number, picture in enumerate(pictures):
        yield Frame(picture, start + number / fps, 1 / fps, number)


def shot(colour, seconds, rng=None):
    """Pictures [24, 32, 3] of one colour, under fresh noise if there is a generator."""
    plain = np.tile(np.array(COLOURS[colour], np.uint8), (24, 32, 1))
    for _ in range(round(seconds * FPS)):
        yield np.clip(plain + rng.normal(0, 6, plain.shape), 0, 255).astype(np.uint8)


def place(rng):
    """[24, 32, 3] float: a picture of a few coloured patches."""
    return np.kron(rng.uniform(0, 255, (3, 4, 3)), np.ones((8, 8, 1)))


def restless(rng, length):
    """Shots, dissolves, flashes and near-repeats in random order and lengths."""
    old, pictures = place(rng), []
    while len(pictures) < length:
        new = (
            place(rng)
            if rng.random() < 0.6
            else np.clip(old + rng.normal(0, 50, (1, 1, 3)), 0, 255)
        )
        if rng.random() < 0.3:
            steps = rng.integers(2, 12)
            pictures += [old + (new - old) * i / steps for i in range(1, steps)]
        if rng.random() < 0.2:
            pictures += [np.full_like(old, 250.0)] * rng.integers(1, 3)
        pictures += [new] * rng.integers(2, 40)
        old = new
    noise = rng.normal(0, 4, (length, 24, 32, 3))
    return np.clip(np.array(pictures[:length]) + noise, 0, 255).astype(np.uint8)


def boundaries_of(rows, config):
    tilling = SceneTilling(config)
    return tilling.push(rows).boundaries + tilling.flush().boundaries


def offline(model, frames):
    """The scenes by ``signature.join`` over the whole film at once."""
    config = signature.ChangeConfig(fps=FPS)
    rows, columns = signature.PLANE
    planes = [
        Image.fromarray(f.pixels).resize((columns, rows), Image.Resampling.BOX) for f in frames
    ]
    signed = np.stack([signature.signature(np.asarray(plane)) for plane in planes])
    detector = signature.ChangeDetector(config)
    pushed, flushed = detector.push(signed), detector.flush()
    changes, likeness = pushed.changes + flushed.changes, pushed.scores + flushed.scores
    sampled = range(0, len(frames), round(FPS / EMBEDDED_FPS))
    rows = np.stack([model.perceive(frames[number].pixels).embedding for number in sampled])
    boundaries = boundaries_of(rows, model.scenes)
    joined = signature.join(changes, boundaries, rows, list(sampled), likeness)
    added = sum(change not in changes for change in joined)
    starts = [frames[0].time, *(frames[change.frame].time for change in joined)]
    return starts, [change.depth for change in joined], added


# -- streaming equals the whole --


@pytest.mark.parametrize("seed", range(8))
def test_scenes_as_they_settle_are_those_of_the_whole(model, seed):
    rng = np.random.default_rng(seed)
    frames = list(timed(restless(rng, int(rng.integers(1, 420)))))
    eager = replace(model, scenes=replace(model.scenes, floor=0.2, flash_frames=seed % 3))
    starts, depths, _ = offline(eager, frames)
    segments = list(find_scenes(eager, Source(frames)))
    assert [s.start for s in segments] == starts
    assert [s.depth for s in segments] == [*depths, None]


class Scripted:
    """A detector that gives its findings up to a place that moves on when it likes."""

    def __init__(self, rng, step):
        self.pushed, self.steps, self._rng, self._step = 0, 0, rng, step

    def move(self, findings, place, *, last):
        before = self.steps
        self.pushed += 1
        if last or self._rng.random() < 0.3:
            late = 0 if last else int(self._rng.integers(0, 4))
            self.steps = max(before, (self.pushed - 1) // self._step - late)
        ends = (before * self._step, float("inf") if last else self.steps * self._step)
        return tuple(f for f in findings if ends[0] < place(f) <= ends[1])

    @property
    def decided_until(self):
        return self.steps * self._step

    def flush(self):
        return self.push(None, last=True)

    def restore(self, state):
        assert state == scenetilling.SceneTillingState()


@pytest.mark.parametrize("seed", range(40))
def test_whatever_is_seen_and_however_late_streaming_equals_the_whole(model, monkeypatch, seed):
    """Both detectors are scripted: they find anything at all, and settle when they like."""
    rng = np.random.default_rng(seed)
    length = int(rng.integers(1, 120))
    frames = list(timed([np.zeros((24, 32, 3), np.uint8)] * length))
    samples = list(range(0, length, 4))
    numbers = np.flatnonzero(rng.random(length) < 0.2)
    kinds = rng.choice(["cut", "gradual"], length)
    changes = [signature.Change(int(n), float(n), str(kinds[n])) for n in numbers if n]
    rows = rng.normal(size=(len(samples), 2))
    scores = [scenetilling.Score(n, 0.5, 0.0) for n in range(1, len(samples))]
    cuts = [n for n in range(1, len(samples)) if rng.random() < 0.4]
    boundaries = [scenetilling.Boundary(n, 0.5, "cut") for n in cuts]
    pace = [scenetilling.Score(n, float(rng.uniform()), 0.0) for n in range(1, length)]

    class Detector(Scripted):
        def push(self, _, last=False):
            found = self.move([*changes, *pace], lambda f: f.frame, last=last)
            kinds = scenetilling.Score, signature.Change
            return signature.Detected(*(tuple(f for f in found if isinstance(f, k)) for k in kinds))

    class Tilling(Scripted):
        def push(self, _, last=False):
            before = self.steps
            settled = self.move(scores, lambda s: s.frame, last=last)
            ends = (before, settled[-1].frame if settled else before)
            found = tuple(b for b in boundaries if ends[0] < b.index <= ends[1])
            return scenetilling.Pushed(settled, found)

    monkeypatch.setattr(scenes, "ChangeDetector", lambda config: Detector(rng, config.step))
    monkeypatch.setattr(scenes, "SceneTilling", lambda config: Tilling(rng, 1))
    sampled = iter(rows)
    blind = SimpleNamespace(
        scenes=model.scenes, perceive=lambda _: SimpleNamespace(embedding=next(sampled))
    )
    joined = signature.join(changes, boundaries, rows, samples, pace)
    segments = list(find_scenes(blind, Source(frames)))
    assert [(s.end, s.depth) for s in segments[:-1]] == [
        (frames[change.frame].time, change.depth) for change in joined
    ]


def test_restored_from_a_snapshot_it_goes_on_as_it_would_have(model):
    frames = list(timed(restless(np.random.default_rng(3), 420)))
    eager = replace(model, scenes=replace(model.scenes, floor=0.2))
    whole, saved, given = SceneFinder(eager), [], []
    for frame in frames:
        saved.append(pickle.dumps(whole.snapshot()))
        given.append(whole.push(frame))
    end = whole.flush()
    assert len(sum(given, end)) > 15
    finder = SceneFinder(eager)  # what it did before does not matter
    for cut in range(0, len(frames), 9):
        finder.restore(pickle.loads(saved[cut]))
        after = slice(cut, cut + 40)  # a scene settles within some five seconds
        assert [finder.push(frame) for frame in frames[after]] == given[after]
    assert finder.flush() == end


def test_the_films_of_that_law_have_changes_of_every_kind(model):
    """Otherwise it would compare empty with empty."""
    frames = list(timed(restless(np.random.default_rng(3), 400)))
    eager = replace(model, scenes=replace(model.scenes, floor=0.2))
    starts, _, added = offline(eager, frames)
    assert 0 < added < len(starts) - 5  # boundaries of embeddings, and changes of signatures


def test_scenes_tile_the_video_and_are_numbered(model):
    rng = np.random.default_rng(1)
    frames = list(
        timed([*shot("red", 3, rng), *shot("blue", 4, rng), *shot("green", 2.25, rng)], start=1.5)
    )
    segments = list(find_scenes(model, Source(frames, end=11.0)))
    assert [(s.id, s.start, s.end, s.reason) for s in segments] == [
        (0, 1.5, 4.5, "cut"),
        (1, 4.5, 8.5, "cut"),
        (2, 8.5, 11.0, "end"),
    ]
    assert all(left.end == right.start for left, right in pairwise(segments))


def test_a_scene_is_given_before_the_source_ends(model):
    rng = np.random.default_rng(2)
    colours = ("red", "blue", "green", "white") * 5
    source = Source(timed(p for colour in colours for p in shot(colour, 5, rng)))
    for count, _ in zip(range(1, 15), find_scenes(model, source), strict=False):
        assert source.num_given < (count * 5 + 10) * FPS


def test_static_noise_is_one_scene_and_what_is_held_is_bounded(model):
    rng = np.random.default_rng(4)
    finder, most = SceneFinder(model), 0
    lag_s = (model.scenes.max_lag + model.scenes.flash_frames + 7) / EMBEDDED_FPS
    for frame in timed(shot("red", 80, rng)):
        assert finder.push(frame) == ()
        held = {k: len(v) for k, v in vars(finder).items() if isinstance(v, list)}
        assert max(held.pop("_times"), held.pop("_scores")) < lag_s * FPS
        most = max(most, *held.values())
    assert most < model.scenes.max_lag
    assert [s.reason for s in finder.flush()] == ["end"]


def test_a_picture_that_gets_ever_more_alike_is_bounded_too(model):
    """Similarity that never falls is SceneTilling's worst case: it waits for ``max_lag``."""
    finder = SceneFinder(model)
    lag_s = (model.scenes.max_lag + model.scenes.flash_frames + 7) / EMBEDDED_FPS
    still = np.zeros((24, 32, 3), np.uint8) + 99
    for frame in timed(still for _ in range(80 * FPS)):
        finder.push(frame)
        assert max(len(finder._times), len(finder._scores)) < lag_s * FPS


# -- ends --


def film():
    rng = np.random.default_rng(5)
    return [*shot("red", 4, rng), *shot("blue", 4, rng), *shot("green", 4, rng)]


def test_a_source_that_fails_gives_what_it_had_and_then_its_error(model):
    source = Source(timed(film()), SourceError("film.mp4: the disk was pulled out"))
    given = []
    with pytest.raises(SourceError, match="pulled out"):
        for event in find_scenes(model, source):
            given.append(event)
    assert [(s.start, s.end) for s in given] == [(0.0, 4.0), (4.0, 8.0), (8.0, 12.0)]
    assert source.is_closed


def test_a_source_that_is_cut_short_gives_what_it_had_and_a_warning(model):
    source = Source(timed(film()), TruncatedError("film.mp4: ends early"))
    *segments, warning = find_scenes(model, source)
    assert len(segments) == 3 and warning == Notice("film.mp4: ends early")


def test_stopping_ends_with_the_last_frame_that_was_seen(model):
    source, seen = Source(timed(film()), end=12.0), []
    segments = list(find_scenes(model, source, lambda: len(seen) >= 50, seen.append))
    assert source.num_given == 50 and seen == [number / FPS for number in range(50)]
    assert [(s.start, s.end) for s in segments] == [(0.0, 4.0), (4.0, 50 / FPS)]
    assert source.is_closed


def test_a_consumer_that_breaks_off_closes_the_source(model):
    source = Source(timed(film()))
    found = find_scenes(model, source)
    assert isinstance(next(found), Segment)
    found.close()
    assert source.is_closed and source.num_given < 12 * FPS


def test_a_source_without_frames_has_no_scenes(model):
    assert list(find_scenes(model, Source([]))) == []


@pytest.mark.parametrize("count", [1, 2, 5])
def test_a_few_frames_are_one_scene(model, count):
    (segment,) = find_scenes(model, Source(list(timed(film()))[:count]))
    assert (segment.start, segment.end) == (0.0, count / FPS)


def test_frames_that_do_not_say_how_long_they_last_are_taken_for_25_a_second(model):
    frames = [replace(frame, duration=0.0) for frame in timed(film())]
    assert [s.start for s in find_scenes(model, Source(frames))] == [0.0, 4.0, 8.0]


# -- keyframes --


def test_of_keyframes_every_unlike_neighbour_starts_a_scene():
    model = tiny_model()
    pictures = ["red", "blue", "blue", "green", "yellow", "yellow", "red"]
    seen = np.stack([model.perceive(moving_square(c, 0)).embedding for c in pictures])
    seen -= seen.mean(0)
    config = for_keyframes(SceneTillingConfig())
    assert [b.index for b in boundaries_of(seen, config)] == [1, 3, 4, 6]


@pytest.mark.parametrize("floor", [0.0, 0.65, 1.3])
def test_keyframes_are_alike_above_one_cosine_whatever_the_floor_between_frames_is(floor):
    config = for_keyframes(SceneTillingConfig(floor=floor))
    angles = np.cumsum([0.0, *np.arccos([KEYFRAMES_ALIKE - 0.01, KEYFRAMES_ALIKE + 0.01])])
    rows = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    assert [b.index for b in boundaries_of(rows, config)] == [1]
