"""Parts that are opened at first use: once, whichever thread comes first."""

import threading
from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")
# One for all parts: libraries change global state while they open weights (transformers builds
# modules on the meta device), so that two parts opened at a time can crash the process.
_OPENING = threading.RLock()


class Once(Generic[T]):
    """Opens a part when it is first asked for; a failure is tried again by the next to ask.

    Args:
        opening: opens the part.
    """

    def __init__(self, opening: Callable[[], T]) -> None:
        self._opening = opening
        self._opened: T | None = None

    def __call__(self) -> T:
        """Return the part; open it first, or wait until another thread has."""
        opened = self._opened
        if opened is None:
            with _OPENING:
                opened = self._opened
                if opened is None:
                    opened = self._opened = self._opening()
        return opened


def once(opening: Callable[[], T]) -> Once[T]:
    """Make a callable open its part once; one that does already is returned as it is."""
    return opening if isinstance(opening, Once) else Once(opening)
