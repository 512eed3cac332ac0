"""The event log: a slow client loses only the oldest events, and gets their count."""

import asyncio

import pytest

from streammem.server.events import EventLog
from streammem.types import Notice

pytestmark = pytest.mark.anyio


def events(*numbers):
    return tuple(Notice(str(number)) for number in numbers)


async def test_two_clients_read_the_same_at_their_own_pace():
    log = EventLog(10)
    for event in events(0, 1, 2):
        log.add(event)
    fast = await log.take(0, 0)
    slow = await log.take(0, 0, most=1)
    assert fast.events == events(0, 1, 2)
    assert (slow.events, slow.position) == (events(0), 1)
    assert (await log.take(slow.position, 0)).events == events(1, 2)


async def test_a_slow_client_gets_the_count_of_its_losses_and_a_fast_one_loses_none():
    log, position = EventLog(3), 0
    for event in events(*range(10)):
        log.add(event)
        fast = await log.take(position, 0)
        assert (fast.events, fast.lost) == ((event,), 0)
        position = fast.position
    slow = await log.take(2, 0)
    assert (slow.events, slow.lost, slow.position) == (events(7, 8, 9), 5, 10)


async def test_what_is_kept_is_bounded():
    log = EventLog(3)
    for event in events(*range(100)):
        log.add(event)
    assert len(log.kept()) == 3 and log.count == 100


async def test_a_client_that_waits_is_woken_by_an_event_and_by_the_end():
    log = EventLog(3)
    waiting = asyncio.ensure_future(log.take(0, 60))
    await asyncio.sleep(0)
    log.add(*events(0))
    assert (await waiting).events == events(0)
    waiting = asyncio.ensure_future(log.take(1, 60))
    await asyncio.sleep(0)
    log.close()
    assert (await waiting).over


async def test_a_place_beyond_the_end_is_the_end():
    log = EventLog(3)
    log.add(*events(0))
    taken = await log.take(99, 0)
    assert (taken.events, taken.position, taken.lost) == ((), 1, 0)


async def test_nothing_is_over_before_all_of_it_was_taken():
    log, found, position = EventLog(9), [], 0
    for event in events(*range(5)):
        log.add(event)
    log.close()
    while True:
        taken = await log.take(position, 0, most=2)
        found, position = [*found, *taken.events], taken.position
        if taken.over:
            break
    assert tuple(found) == events(*range(5))
