"""What every video source is, what may be asked of it, and which of its frames answer that.

A new source is one class and one row in `registry.py`:

    class Countdown(VideoSource):
        def _frames(self) -> Iterator[Frame]:
            for number in range(10):
                yield Frame(picture_of(9 - number), time=number, duration=1.0, index=number)
            self._finish(shown_until=10.0, num_given=10)
"""

import math
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal, Self, get_args

import numpy as np

from streammem.errors import ConfigError, SourceError, TruncatedError
from streammem.types import Frame, encodable

if TYPE_CHECKING:
    from av.container import InputContainer  # PyAV loads only once a video is opened

Decoder = Literal["pyav", "decord"]
DECODERS: tuple[Decoder, ...] = get_args(Decoder)
MAX_NOTICES = 16  # that wait to be shown; older ones go
HELD_S = 1.0  # a picture that is on screen at the start, and for longer after it, is given there
DEFAULT_FPS = 2.0
WATCHED_SIDE = 640  # pixels; more is thrown away by the encoder and by keyframes


@dataclass(frozen=True, slots=True)
class Sampling:
    """Which frames of a source are wanted, and how large.

    Attributes:
        fps: samples a second; None takes every frame.
        start: seconds, >= 0; frames before it are left out. Of files, pictures and pushed
            frames, the one that is on screen then is given, with ``start`` as its time, where none
            follows within HELD_S and before ``end``.
        end: seconds, > start; frames at or after it are left out. None reads to the end.
        max_side: the longer side is shrunk to this many pixels, never enlarged.
        sparse: keyframes only.
        origin: seconds; sample k is the first frame at or after ``origin + k / fps``. None is
            ``start``; below 0 in a part of a longer stream, see ``after``.

    Raises:
        ConfigError: a value outside its range.
    """

    fps: float | None = None
    start: float = 0.0
    end: float | None = None
    max_side: int | None = None
    sparse: bool = False
    origin: float | None = None

    def __post_init__(self) -> None:
        if self.fps is not None and not (self.fps > 0 and math.isfinite(self.fps)):
            raise ConfigError(f"fps must be above 0, not {self.fps}; try fps=1")
        if not (self.start >= 0 and math.isfinite(self.start)):
            raise ConfigError(f"start must be 0 s or later, not {self.start}")
        if self.end is not None and not self.end > self.start:
            raise ConfigError(f"end must be after start ({self.start} s), not {self.end}")
        if self.max_side is not None and self.max_side < 1:
            raise ConfigError(f"max_side must be 1 pixel or more, not {self.max_side}")

    def after(self, offset: float) -> Self:
        """Return the same wish for a part of a stream, in the part's own time.

        Args:
            offset: seconds into the stream at which the part begins, < ``end``.
        """
        origin = self.start if self.origin is None else self.origin
        end = None if self.end is None else self.end - offset
        start = max(0.0, self.start - offset)
        return replace(self, start=start, end=end, origin=origin - offset)


@dataclass(frozen=True, slots=True)
class SourceOptions(Sampling):
    """How a source is opened to be watched; see ``Sampling`` for the rest.

    Attributes:
        reader: what decodes video files; ``decord`` needs the extra of that name.
        reconnect: a live source that is lost is opened again, instead of ending.
    """

    fps: float | None = DEFAULT_FPS
    max_side: int | None = WATCHED_SIDE
    reader: Decoder = "pyav"
    reconnect: bool = False

    def __post_init__(self) -> None:
        Sampling.__post_init__(self)  # `super()` fails in a dataclass with slots
        if self.reader not in DECODERS:
            raise ConfigError(f"no reader {self.reader!r}; choose one of {', '.join(DECODERS)}")


class Grid:
    """Decides of frames in presentation order which of them are samples.

    Sample k is the first frame at or after ``origin + k / fps``, so the samples are the first
    frames of each slot [origin + k / fps, origin + (k + 1) / fps) that holds any:

        slots   |    0    |    1    |    2    |
        frames     a  b  c   d  e          f       samples: a, d, f

    Args:
        sampling: what was asked for.
        tick: seconds to which the source rounds its times. Half of it (at most 0.5 ms) is
            forgiven: without that a 30 fps Matroska file, whose tick is 1 ms, would lose every
            third frame at fps=30.
    """

    def __init__(self, sampling: Sampling, tick: float = 0.0) -> None:
        self._sampling = sampling
        self._origin = sampling.start if sampling.origin is None else sampling.origin
        self._forgiven = min(max(tick / 2, 1e-6), 5e-4)
        self._last_slot = -1

    @property
    def next_target(self) -> float | None:
        """Seconds at or after which the next sample lies; None where every frame is one."""
        fps = self._sampling.fps
        if fps is None:
            return None
        return max(self._sampling.start, self._origin + (self._last_slot + 1) / fps)

    def is_past(self, time: float) -> bool:
        """Return whether a time lies at or after the sampling's end."""
        return self._sampling.end is not None and time >= self._sampling.end - 1e-6

    def slot(self, time: float) -> int | None:
        """Return the number of the slot that holds a time; None outside [start, end)."""
        if time - self._sampling.start + self._forgiven < 0 or self.is_past(time):
            return None
        offset = time - self._origin + self._forgiven
        return math.floor(offset * (self._sampling.fps or 0.0))

    def takes(self, time: float) -> bool:
        """Return whether the next frame in presentation order is a sample; remembers it if so."""
        slot = self.slot(time)
        if slot is None:
            return False
        if self._sampling.fps is None:
            return True
        if slot <= self._last_slot:
            return False
        self._last_slot = slot
        return True


class FrameSampler:
    """Chooses of frames that are pushed, in order of time, those that are wanted.

    Where none comes within HELD_S after the sampling's start, the one that is on screen then is
    chosen, from there on.

    Args:
        sampling: what was asked for.
    """

    def __init__(self, sampling: Sampling) -> None:
        self._grid, self._start = Grid(sampling), sampling.start
        self._held: Frame | None = None  # the last one before the start

    def is_past(self, time: float) -> bool:
        """Return whether a time lies at or after the sampling's end."""
        return self._grid.is_past(time)

    def push(self, frame: Frame) -> list[Frame]:
        """Return those of the frames so far that are chosen by now, the held one first."""
        time, chosen = frame.time, list[Frame]()
        if self.is_past(time) or time > self._start + HELD_S:
            chosen = self._chosen(until=time)
        is_before = not self.is_past(time) and self._grid.slot(time) is None
        self._held = frame if is_before else None
        return [*chosen, frame] if self._grid.takes(time) else chosen

    def flush(self) -> list[Frame]:
        """Return the frame that stays on screen at the start, if none came after it."""
        held = self._held
        return self._chosen(until=held.time + held.duration) if held else []

    def _chosen(self, until: float) -> list[Frame]:
        held, self._held = self._held, None
        if held is None or until <= self._start or not self._grid.takes(self._start):
            return []
        return [replace(held, time=float(self._start), duration=until - self._start)]


class VideoSource(ABC):
    """One pass over the frames of a video: sampled, in order, once. A context manager.

    A source defines ``_frames``, which ends with ``_finish``, and ``_release`` where it holds
    anything. All other attributes have defaults that hold for a file.

    Attributes:
        name: what evidence calls it: path or URL without credentials.
        duration: seconds, if known beforehand.
        start_time: seconds at which the first picture is shown. Above 0 in a file whose sound, or
            part of whose first pictures cannot be decoded, comes before: times are the file's own,
            as players show them. ``frame.time - start_time`` counts from the first picture.
        end: seconds; None until all frames were given, then the last decoded frame's time + its
            duration, at most the sampling's end. It is set where no frame was wanted, too.
        was_cut: whether a picture of a file or of several comes at or after the sampling's end; set
            with ``end``.
        path: of the one video file on this computer that it reads; None of any other source.
        paths: of the video files on this computer that it plays one after another, where they are
            known from the start.
        starts: seconds at which those of ``paths`` begin, by their place in it; set by the thread
            that reads, before the first frame of each.
        has_texts: whether it may hold tracks of text; False once it is known that it holds none.
        live: whether a frame that is not taken when it comes is lost.
        finite: whether its end is known from the start, so that one that comes before is a failure.
        reconnect: whether a live source that is lost is opened again; set before it is read.
        sparse: whether it gives keyframes only.
        wall_zero: Unix seconds at stream time 0, where known; a live source sets it anew at each
            connection, and lets it follow where the two clocks drift apart.
        playlist: URL of the HLS that it reads, with credentials; None of any other source.
        text_clock: of an HLS, a stamp of the container's clock in seconds, and where that lies on
            the source's clock: of a live one the newest picture's. None before it is known. Set by
            the thread that reads.
        notices: what users should know, oldest first; any thread may take them out.
        num_connections: times that a live source was connected and gave a picture.
        num_damaged: pictures of a live source that were left out.
        stopping: whether ``stop`` was called.
        sound_beside: whether sound may come beside the pictures, by ``on_sound``.
        on_sound: called by the thread that reads, with the second on the stream's clock at which
            samples begin and the samples, [N] float32 at ``sound.SOUND_RATE``, mono; it must not
            block. Set before the source is read; frames are the same with and without it.
    """

    path: str | None = None
    paths: tuple[str, ...] = ()
    has_texts = True
    live = False
    finite = True
    reconnect = False
    start_time = 0.0
    was_cut = False
    wall_zero: float | None = None
    playlist: str | None = None
    text_clock: tuple[float, float] | None = None
    num_connections = 0
    num_damaged = 0
    stopping = False
    sound_beside = False
    on_sound: Callable[[float, np.ndarray], object] | None = None

    def __init__(
        self, name: str, sampling: Sampling | None = None, duration: float | None = None
    ) -> None:
        self._sampling = sampling or Sampling()
        self.name, self.duration, self.sparse = encodable(name), duration, self._sampling.sparse
        self.end: float | None = None
        self.starts: dict[int, float] = {}
        self.notices: deque[str] = deque(maxlen=MAX_NOTICES)
        self._state = "fresh"

    @property
    def sound_apart(self) -> bool:
        """Whether ``sound_pass`` gives its sound, if it has any."""
        return self.path is not None or type(self).sound_pass is not VideoSource.sound_pass

    @property
    def goes_on(self) -> bool:
        """Whether its times begin anew each time it is opened, unlike those of a file.

        A memory then places it behind what it has seen of it. Valid once a frame was given.
        """
        return self.live or self.wall_zero is not None

    @property
    def is_closed(self) -> bool:
        """Whether ``close`` was called."""
        return self._state == "closed"

    @abstractmethod
    def _frames(self) -> Iterator[Frame]:
        """Give the sampled frames, then call ``_finish``."""

    def _release(self) -> None:  # noqa: B027, most sources that tests make hold nothing
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

    def sound_pass(
        self, *, first_channel: bool = False
    ) -> Iterator[tuple[float, np.ndarray]] | None:
        """Return the sound of what can be read in a pass of its own, by another thread.

        Args:
            first_channel: give that of a single file alone, and not all channels mixed.

        Returns:
            An iterator that opens it with its first step, and gives the second on the source's
            clock at which samples begin, and the samples, as ``on_sound`` takes them; none while it
            is not known what follows, since the pass over the pictures has not come there. None
            where there is no such pass. It raises ``SourceError`` where there is no sound, or it
            breaks off.
        """
        if self.path is None:
            return None
        from streammem.video.sound import file_sound

        return file_sound(self.path, self.name, first_channel=first_channel)

    def text_pass(self) -> "Callable[[], InputContainer] | None":
        """Return what opens it once more, to read its text tracks by another thread.

        Returns:
            A function that raises ``av.FFmpegError`` where it cannot be opened any more. None where
            there are no such tracks, and of files on this computer, which are read by their path.
        """
        return None

    def stop(self) -> None:
        """Ask a pass that waits for something to end soon; any thread may."""
        self.stopping = True

    def close(self) -> None:
        """Release the source; may be repeated, and by no other thread than the one that reads.

        A pass that is under way gives no more frames.
        """
        self._state = "closed"
        self._release()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _finish(self, shown_until: float, num_given: int, missing: str | None = None) -> None:
        """Set the end after the last frame, and report what is missing.

        Args:
            shown_until: seconds; the end of the last decoded frame, given or not.
            num_given: frames that were given.
            missing: why frames are missing; None if none are.

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
