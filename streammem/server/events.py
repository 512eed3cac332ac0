"""A bounded log of a session's events, which each client reads at its own pace."""

import asyncio
from collections import deque
from collections.abc import Mapping
from typing import NamedTuple

from streammem.output.render import NOTHING
from streammem.types import Event


class Taken(NamedTuple):
    """The next events for one client.

    Attributes:
        events: in order; the last one's number is ``position`` - 1.
        more: further keys of each event, such as ``wall_start``.
        position: to continue from.
        lost: events between the requested position and these that the log no longer holds.
        over: no event will follow.
    """

    events: tuple[Event, ...]
    more: tuple[Mapping[str, object], ...]
    position: int
    lost: int
    over: bool


class EventLog:
    """The last events of a session, numbered from 0. Used in the event loop only.

    Each client keeps a position instead of a queue, so that memory is bounded whatever the number
    and speed of clients; one that falls behind loses only the oldest events.

    Args:
        kept: events at most.
    """

    def __init__(self, kept: int) -> None:
        self._kept: deque[tuple[Event, Mapping[str, object]]] = deque(maxlen=kept)
        self._changed = asyncio.Event()
        self.count, self.over = 0, False

    def add(self, event: Event, more: Mapping[str, object] = NOTHING) -> None:
        """Append an event with further keys, and wake the clients that wait."""
        self._kept.append((event, more))
        self.count += 1
        self._wake()

    def close(self) -> None:
        """Note that the source has ended; answers may still be added."""
        self.over = True
        self._wake()

    def kept(self) -> tuple[Event, ...]:
        """Return the events in the log, oldest first."""
        return tuple(event for event, _ in self._kept)

    async def take(self, position: int, patience_s: float, most: int = 256) -> Taken:
        """Return the events from a position on; none if none comes in time.

        Args:
            position: number of the first event to return.
            patience_s: seconds to wait for one.
            most: events at once.
        """
        position = max(0, min(position, self.count))
        if position == self.count and not self.over and patience_s > 0:
            try:
                async with asyncio.timeout(patience_s):
                    await self._changed.wait()
            except TimeoutError:
                pass
        first = max(position, self.count - len(self._kept))
        skipped = first - (self.count - len(self._kept))
        taken = tuple(self._kept)[skipped : skipped + most]
        events, more = tuple(e for e, _ in taken), tuple(m for _, m in taken)
        after = first + len(events)
        return Taken(events, more, after, first - position, self.over and after == self.count)

    def _wake(self) -> None:
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()
