"""What a session has told, kept for a while, and read by each client at its own pace."""

import asyncio
from collections import deque
from collections.abc import Mapping
from typing import NamedTuple

from streammem.output.render import NOTHING
from streammem.types import Event


class Taken(NamedTuple):
    """What a client gets next.

    Attributes:
        events: in order; the last one's number is ``position`` - 1.
        more: what else was told of each, as ``wall_start``.
        position: to ask from next.
        lost: events that came before these and are not kept any more.
        over: nothing will ever follow.
    """

    events: tuple[Event, ...]
    more: tuple[Mapping[str, object], ...]
    position: int
    lost: int
    over: bool


class EventLog:
    """The last events of a session, numbered from 0. Used in the event loop only.

    Clients keep their place, not a queue: however many there are and however slow, what is held is
    bounded, and one that falls behind loses the oldest events alone.

    Args:
        kept: events at most.
    """

    def __init__(self, kept: int) -> None:
        self._kept: deque[tuple[Event, Mapping[str, object]]] = deque(maxlen=kept)
        self._changed = asyncio.Event()
        self.count, self.over = 0, False

    def add(self, event: Event, more: Mapping[str, object] = NOTHING) -> None:
        """Tell an event, and what else is known of it, to all."""
        self._kept.append((event, more))
        self.count += 1
        self._wake()

    def close(self) -> None:
        """Nothing more comes from the source; answers may still be added."""
        self.over = True
        self._wake()

    def kept(self) -> tuple[Event, ...]:
        """Return what is kept, oldest first."""
        return tuple(event for event, _ in self._kept)

    async def take(self, position: int, patience_s: float, most: int = 256) -> Taken:
        """Return what comes from a place on; nothing, if nothing comes in time.

        Args:
            position: number of the first event that is wanted.
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
        told = tuple(self._kept)[skipped : skipped + most]
        events, more = tuple(e for e, _ in told), tuple(m for _, m in told)
        after = first + len(events)
        return Taken(events, more, after, first - position, self.over and after == self.count)

    def _wake(self) -> None:
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()
