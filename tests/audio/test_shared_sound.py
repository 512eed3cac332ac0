"""The sound of a file is decoded once for all that listen to it."""

import threading
import time

import numpy as np
import pytest

from streammem.engine import listener
from streammem.engine.listener import Listener, SharedSound
from streammem.errors import SourceError
from streammem.types import Notice
from tests.models.heard import Planted

PATIENCE_S = 20.0


def seconds(count, decoded):
    for number in range(count):
        decoded.append(number)
        yield float(number), np.full(100, number, np.float32)


def read(shared, number, into, until=None):
    def run():
        for at, samples in shared.sound(number):
            into.append((at, float(samples[0])))
            if len(into) == until:
                shared.leave(number)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    return thread


def ended(*threads):
    for thread in threads:
        thread.join(PATIENCE_S)
    return not any(thread.is_alive() for thread in threads)


@pytest.mark.parametrize("count", [1, 2, 3])
def test_each_listener_hears_all_of_it_and_it_is_decoded_once(count):
    decoded, heard = [], [[] for _ in range(count)]
    shared = SharedSound(seconds(300, decoded), count)
    threads = [read(shared, number, into) for number, into in enumerate(heard)]
    assert ended(*threads)
    assert decoded == list(range(300))
    assert heard == [[(float(k), float(k)) for k in range(300)]] * count


def test_what_waits_for_a_slow_listener_is_bounded_and_one_that_leaves_holds_back_none():
    decoded, slow, fast = [], [], []
    shared = SharedSound(seconds(1000, decoded), 2)
    waits, bound = shared.sound(0), listener.AHEAD_S + 1
    slow.append(next(waits)[0])
    thread = read(shared, 1, fast)
    until = time.monotonic() + PATIENCE_S
    while len(fast) < listener.AHEAD_S and time.monotonic() < until:
        thread.join(0.01)
    assert thread.is_alive() and len(shared._pieces) <= bound and len(decoded) <= bound + 1
    shared.leave(0)
    assert ended(thread) and len(fast) == 1000 and list(waits) == []


def test_a_listener_that_leaves_early_ends_at_once():
    heard = [[], []]
    shared = SharedSound(seconds(500, []), 2)
    threads = [read(shared, 0, heard[0], until=10), read(shared, 1, heard[1])]
    assert ended(*threads) and [len(each) for each in heard] == [10, 500]


def test_sound_that_fails_is_told_once_behind_what_came_before():
    def broken():
        yield 0.0, np.ones(16_000, np.float32)
        raise SourceError("x.mkv: broke off")

    shared, planted = SharedSound(broken(), 2), [Planted(), Planted()]
    listeners = [
        Listener("x", lambda heard=heard: heard, shared.sound(number))
        for number, heard in enumerate(planted)
    ]
    for each in listeners:
        each._thread.join(PATIENCE_S)
    told = [item for each in listeners for item in each.ready() if isinstance(item, Notice)]
    assert [notice.message for notice in told] == ["x.mkv: broke off"]
    assert [heard.read for heard in planted] == [16_000, 16_000]


def test_closing_ends_a_listener_that_waits_for_another():
    shared = SharedSound(seconds(1000, []), 2)
    listening = Listener("x", lambda: Planted(), shared.sound(0), on_end=lambda: shared.leave(0))
    listening.close()
    assert not listening._thread.is_alive()
