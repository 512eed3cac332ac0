"""What all sources here have in common: they are read once, and closed.

Which frames they give is theirs to say.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Self

from streammem.errors import SourceError, TruncatedError
from streammem.types import Frame
from streammem.video.sampling import Sampling


class SinglePass(ABC):
    """One pass over the frames of a source.

    Attributes:
        name: path or URL without credentials.
        duration: seconds, if known beforehand.
        end: seconds; None until all frames were given, then the last one's time + duration, at
            most the sampling's end.
        live: whether a frame that is not taken when it comes is lost.
        reconnect: whether a live source that is lost is awaited; set before it is read.
        stopping: whether ``stop`` was called.
    """

    live = False
    reconnect = False
    stopping = False

    def __init__(self, name: str, sampling: Sampling, duration: float | None) -> None:
        self.name = name
        self.duration = duration
        self.end: float | None = None
        self._sampling = sampling
        self._state = "fresh"

    @abstractmethod
    def _frames(self) -> Iterator[Frame]: ...

    @abstractmethod
    def _release(self) -> None:
        """Give back what the source holds; may be called again."""

    def __iter__(self) -> Iterator[Frame]:
        """Give the sampled frames, once.

        Raises:
            TruncatedError: after the last good frame of a broken or incomplete source.
            SourceError: no frame in the wanted span, a second pass, or a closed source.
        """
        if self._state != "fresh":
            raise SourceError(f"{self.name}: the source is {self._state}; open it again")
        self._state = "read already"
        return self._until_closed()

    def _until_closed(self) -> Iterator[Frame]:
        # A closed container must not be read any more: FFmpeg would crash.
        frames = self._frames()
        while self._state != "closed":
            frame = next(frames, None)
            if frame is None:
                return
            yield frame

    def close(self) -> None:
        """Release the source; may be repeated. A pass that is under way gives no more frames."""
        self._state = "closed"
        self._release()

    def stop(self) -> None:
        """Ask a pass that waits for something to end soon; any thread may."""
        self.stopping = True

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _finish(self, shown_until: float, num_given: int, missing: str | None = None) -> None:
        """Set the end after the last frame, and report what is missing.

        Raises:
            TruncatedError: something is missing.
            SourceError: no frame was given.
        """
        limit = self._sampling.end
        self.end = shown_until if limit is None else min(shown_until, limit)
        if missing is not None:
            raise TruncatedError(f"{self.name}: {missing}")
        if not num_given:
            before = f" before {limit:g} s" if limit is not None else ""
            kind = "keyframe" if self._sampling.sparse else "frame"
            start = self._sampling.start
            raise SourceError(
                f"{self.name}: no {kind} from {start:g} s on{before}; choose another span"
            )
