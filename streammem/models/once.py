"""Parts of a model that are opened at first use: once, whichever thread comes first.

    open_language = once(lambda: CausalLanguageModel.open(folder), "language model")
    open_language()  # opens it, or waits until another thread has

Two kinds of lock. ``opening`` is one for the whole process; a ``PartLock`` belongs to one part and
keeps it from being used while it changes, and its tokenizer from two threads at a time. A part may
open others while it holds its own lock. What holds ``opening`` must not ask a part that other
threads have already.
"""

import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Generic, TypeVar

T = TypeVar("T")
log = logging.getLogger(__name__)
PartLock = threading.RLock
# One for all parts: libraries change global state while they open weights (transformers replaces
# functions of torch.nn.init and the default dtype, and imports its modules on demand), so that two
# parts opened at a time can crash the process or lack weights.
_OPENING = threading.RLock()


@contextmanager
def opening(part: str) -> Iterator[None]:
    """Keep all other parts from being opened meanwhile; log how long this one took.

    A decorator too. It may be entered again by the thread that is in it.

    Args:
        part: what is opened, for the log.
    """
    with _OPENING:
        began = time.monotonic()
        yield
        log.info("%s opened in %.1f s", part, time.monotonic() - began)


class Once(Generic[T]):
    """Opens a part when it is first asked for; a failure is tried again by the next to ask.

    Args:
        open_part: opens it.
        part: its name, for the log.
    """

    def __init__(self, open_part: Callable[[], T], part: str) -> None:
        self._open_part, self._part = open_part, part
        self._opened: T | None = None

    def __call__(self) -> T:
        """Return the part; open it first, or wait until another thread has.

        Raises:
            Exception: what opening it raised, to each that asks.
        """
        opened = self._opened
        if opened is None:
            with _OPENING:
                opened = self._opened
                if opened is None:
                    with opening(self._part):
                        opened = self._opened = self._open_part()
        return opened


def once(open_part: Callable[[], T], part: str) -> Once[T]:
    """Make a callable open its part once; one that does already is returned as it is."""
    return open_part if isinstance(open_part, Once) else Once(open_part, part)
