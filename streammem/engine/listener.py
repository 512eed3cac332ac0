"""The listener's thread: it recognises the speech of a file beside its perception.

    listener = Listener(path, recogniser("whisper-base"))
    listener.ready()          # notes that are final by now; never waits
    listener.close()

Perception never waits for it: a note joins its scene when it is there.
"""

import queue
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from streammem.errors import ServedModelError, StreammemError
from streammem.models.transcription import Recognises
from streammem.types import Note, Notice


class Listener:
    """Recognises what is said in a file, in a thread of its own.

    Args:
        path: of the file.
        opener: opens the recogniser, in the thread.
    """

    def __init__(self, path: str, opener: Callable[[], Recognises]) -> None:
        self._path, self._opener = path, opener
        self._results: queue.Queue[Note | Notice] = queue.Queue()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="streammem-listener", daemon=True)
        self._thread.start()

    @property
    def finished(self) -> bool:
        """Whether nothing comes any more."""
        return not self._thread.is_alive() and self._results.empty()

    def ready(self, wait_s: float = 0.0) -> list[Note | Notice]:
        """Return what has come, in order of time; wait for the first of it at most ``wait_s``."""
        found = list[Note | Notice]()
        with suppress(queue.Empty):
            if wait_s:
                found.append(self._results.get(timeout=wait_s))
            while True:
                found.append(self._results.get_nowait())
        return found

    def close(self) -> None:
        """End the thread; it may take as long as the sentence that is recognised."""
        self._stop.set()
        self._thread.join(5.0)

    def _run(self) -> None:
        try:
            for item in self._opener().notes(self._path, self._stop.is_set):
                self._results.put(item)
        except StreammemError as error:
            is_failure = isinstance(error, ServedModelError)
            self._results.put(Notice(str(error), is_failure=is_failure))
        except Exception as error:  # noqa: BLE001, speech that fails must not end the watching
            text = f"{Path(self._path).name}: speech is not recognised any more"
            self._results.put(Notice(f"{text} ({type(error).__name__}: {error})"))
