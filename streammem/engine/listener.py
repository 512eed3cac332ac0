"""The listener's thread: it recognises the speech of a file beside its perception.

    listener = Listener(path, folder, language=None)
    listener.ready()          # notes that are final by now; never waits
    listener.close()

Perception never waits for it: a note joins its scene when it is there.
"""

import importlib.util
import queue
import threading
from contextlib import suppress
from pathlib import Path

from streammem.audio.recogniser import Recogniser
from streammem.errors import BackboneError, StreammemError, install_command
from streammem.models.backbones.weights import weights_path
from streammem.types import Note, Notice

WHISPER = "whisper-base"


def model_folder(name: str) -> Path:
    """Return the folder of a recogniser's weights.

    Args:
        name: ``whisper-base``, or a folder.

    Raises:
        BackboneError: faster-whisper is not installed, or the weights are not here.
    """
    if importlib.util.find_spec("faster_whisper") is None:
        raise BackboneError(f"faster-whisper is not installed; run: {install_command('speech')}")
    return weights_path(WHISPER) if name == WHISPER else Path(name)


class Listener:
    """Recognises what is said in a file, in a thread of its own.

    Args:
        path: of the file.
        folder: of the recogniser's weights, which are opened in the thread.
        language: ISO 639-1, or None to find it.
    """

    def __init__(self, path: str, folder: Path, language: str | None) -> None:
        self._path, self._folder, self._language = path, folder, language
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
            recogniser = Recogniser(self._folder, self._language)
            for note in recogniser.notes(self._path, self._stop.is_set):
                self._results.put(note)
        except StreammemError as error:
            self._results.put(Notice(str(error), is_failure=False))
        except Exception as error:  # noqa: BLE001, speech that fails must not end the watching
            text = f"{Path(self._path).name}: speech is not recognised any more"
            self._results.put(Notice(f"{text} ({type(error).__name__}: {error})"))
