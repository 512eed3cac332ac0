"""Boundaries of many streams that are found together are those that each finds alone."""

import threading

import numpy as np
import pytest

from streammem.captioning import shared_tilling
from streammem.captioning.shared import share_model
from streammem.captioning.shared_tilling import FEWEST, SharedTilling, StreamTilling
from streammem.engine.session import Session
from streammem.errors import BackboneError
from streammem.perception.scenetilling import SceneTilling, SceneTillingConfig
from tests.tiny import film, tiny_model

CONFIG = SceneTillingConfig(floor=0.3, alpha=1.0, half_life=8.0, max_frames=9, max_lag=4)


def opened(streams, config=CONFIG):
    """A stream of a host; on a CPU its step is the reference in torch."""
    return StreamTilling(streams._group, config)


def frames(seed, count=40, width=12):
    """Embeddings of scenes of some frames each."""
    rng = np.random.default_rng(seed)
    rows, scene = [], rng.normal(size=width)
    for _ in range(count):
        scene = rng.normal(size=width) if rng.random() < 0.2 else scene
        rows.append(scene + 0.2 * rng.normal(size=width))
    return np.array(rows, np.float32)


def found(tilling, rows):
    return [[(b.index, b.reason) for b in tilling.push(row).boundaries] for row in rows]


def test_streams_of_many_threads_cut_at_each_step_where_each_alone_does():
    streams, count = SharedTilling("cpu"), FEWEST + 1  # which outgrow the first room
    results, rows = [None] * count, [frames(seed, 24) for seed in range(count)]
    together = threading.Barrier(count)

    def run(seed):
        tilling = opened(streams)
        together.wait(60)
        cuts = found(tilling, rows[seed])
        results[seed] = cuts, tilling.settled_before, tilling.lag, tilling.flush().boundaries

    threads = [threading.Thread(target=run, args=(seed,)) for seed in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    for seed in range(count):
        alone = SceneTilling(CONFIG)
        cuts, settled_before, lag, last = results[seed]
        assert cuts == found(alone, rows[seed]) and sum(map(len, cuts)) > 1
        assert (settled_before, lag) == (alone.settled_before, alone.lag)
        wanted = alone.flush().boundaries
        assert [b.index for b in last] == [b.index for b in wanted]


@pytest.mark.parametrize("cut", [1, 6, 30])
def test_a_snapshot_goes_on_in_either_form(cut):
    streams, rows = SharedTilling("cpu"), frames(3, 36)
    shared, alone = opened(streams), SceneTilling(CONFIG)
    for each in (shared, alone):
        found(each, rows[:cut])
    wanted = found(SceneTilling(CONFIG), rows)[cut:]
    for state in (shared.snapshot(), alone.snapshot()):
        for other in (opened(streams), SceneTilling(CONFIG)):
            other.restore(state)
            assert other.settled_before == alone.settled_before
            assert found(other, rows[cut:]) == wanted
    assert shared.snapshot()[:3] == alone.snapshot()[:3]
    assert found(shared, rows[cut:]) == wanted


def test_an_ended_stream_goes_on_and_its_end_may_come_twice():
    shared, alone = opened(SharedTilling("cpu")), SceneTilling(CONFIG)
    for each in (shared, alone):
        assert each.flush().boundaries == ()  # before the first frame, too
    for seed in range(3):
        assert found(shared, frames(seed, 11)) == found(alone, frames(seed, 11))
        wanted = [b.index for b in alone.flush().boundaries]
        assert [b.index for b in shared.flush().boundaries] == wanted
        assert shared.flush().boundaries == ()
        restored = opened(SharedTilling("cpu"))
        restored.restore(shared.snapshot())
        assert restored.flush().boundaries == () and restored.snapshot()[:5] == alone.snapshot()[:5]
        # What was learned is of cosines whose last bits differ.
        assert np.allclose(restored.snapshot()[5:], alone.snapshot()[5:], atol=1e-9)


def test_a_frame_that_is_not_finite_is_refused_and_the_stream_goes_on():
    shared, rows = opened(SharedTilling("cpu")), frames(4)
    assert found(shared, rows[:7]) == found(SceneTilling(CONFIG), rows[:7])
    with pytest.raises(BackboneError, match="frame 7: the vision encoder gave NaN"):
        shared.push(np.full_like(rows[0], np.nan))
    assert found(shared, rows[7:]) == found(SceneTilling(CONFIG), rows)[7:]
    with pytest.raises(ValueError, match="width 5 follow"):
        shared.push(np.ones(5, np.float32))


def test_a_launch_that_fails_is_raised_and_the_stream_goes_on(monkeypatch):
    shared, rows = opened(SharedTilling("cpu")), frames(5, 12)
    assert found(shared, rows[:6]) == found(SceneTilling(CONFIG), rows[:6])

    def fail(*_, **__):
        raise RuntimeError("no launch")

    with monkeypatch.context() as failing:
        failing.setattr(shared_tilling.ops, "tilling_step", fail)
        with pytest.raises(RuntimeError, match="no launch"):
            shared.push(rows[6])
    assert found(shared, rows[6:]) == found(SceneTilling(CONFIG), rows)[6:]


def test_a_place_is_free_again_and_empty_once_its_stream_is_gone():
    streams = SharedTilling("cpu")
    for seed in range(FEWEST + 3):
        rows = frames(seed, 6)
        assert found(opened(streams), rows) == found(SceneTilling(CONFIG), rows)
    (group,) = streams._groups.values()
    assert len(group.state.rows) == FEWEST


def test_the_kernel_is_taken_where_it_runs_and_streams_are_many(monkeypatch):
    assert type(SharedTilling("cpu").open(CONFIG)) is SceneTilling
    monkeypatch.setattr(shared_tilling, "kernel_choice", lambda device: ("triton", "on CUDA"))
    monkeypatch.setattr(shared_tilling, "LEAST_STREAMS", 3)
    streams = SharedTilling("cpu")
    held = [streams.open(CONFIG) for _ in range(4)]
    assert [type(each) for each in held] == [SceneTilling] * 2 + [StreamTilling] * 2
    del held
    assert type(streams.open(CONFIG)) is SceneTilling
    forced = ("triton", "STREAMMEM_KERNELS=triton")
    monkeypatch.setattr(shared_tilling, "kernel_choice", lambda device: forced)
    assert type(streams.open(CONFIG)) is StreamTilling


def test_sessions_of_a_shared_model_close_the_segments_that_each_closes_alone(monkeypatch):
    colours = [("red", 6), ("blue", 5), ("green", 7)]
    with Session(tiny_model()) as alone:
        wanted = [segment for frame in film(*colours) for segment in alone.push(frame)]
        wanted += alone.flush()
    forced = ("triton", "STREAMMEM_KERNELS=triton")
    monkeypatch.setattr(shared_tilling, "kernel_choice", lambda device: forced)
    model, scheduler = share_model(tiny_model())
    with Session(model) as session, Session(model, on_score=lambda *_: None) as plotted:
        assert type(session._tilling) is StreamTilling
        assert type(plotted._tilling) is SceneTilling  # which alone measures scores
        found = [segment for frame in film(*colours) for segment in session.push(frame)]
        found += session.flush()
    scheduler.close()
    assert [(s.id, s.start, s.end, s.reason) for s in found] == [
        (s.id, s.start, s.end, s.reason) for s in wanted
    ]
    assert len(found) == 3
