"""How a source is watched: values, and functions that are called meanwhile.

    options = WatchOptions(alerts=("a dog on the sofa",), stats_s=60.0)
    callbacks = WatchCallbacks(stop=lambda: done.is_set())
    watch(session, "rtsp://camera/1", options, callbacks=callbacks)

``video.SourceOptions`` hold how the source itself is opened. Every option has a default.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from streammem.audio.track import SpeechOptions
from streammem.errors import ConfigError
from streammem.types import Frame, Segment

Drop = Literal["oldest", "newest", "never"]
DROPS: tuple[Drop, ...] = get_args(Drop)
REFRESH_S = 30.0


@dataclass(frozen=True, slots=True)
class AlertConfig:
    """When something counts as there.

    Attributes:
        min_score: in (0, 1), of a frame from which on it counts as there: how likely it shows it,
            as the score of evidence. Raising it finds less and is wrong less often.
        frames: >= 2, unlike frames that an alert is to hold against.
        leave: in [0, 1), where it counts as gone: the cosine that lies so far from the
            background's mean to the one at which it counts as there.
        away_s: seconds below that before it may be reported again.
        confirm: frames in a row that must show it.
        pictures: folder for the frames of alerts; None keeps none.
        max_pictures: kept there; the oldest go.
    """

    min_score: float = 0.55
    frames: int = 100
    leave: float = 0.7
    away_s: float = 5.0
    confirm: int = 2
    pictures: Path | None = None
    max_pictures: int = 1000

    def __post_init__(self) -> None:
        if not 0 < self.min_score < 1:
            raise ConfigError(f"alerts: min_score is {self.min_score}; give one in (0, 1)")
        if self.frames < 2 or not 0 <= self.leave < 1 or self.away_s < 0 or self.confirm < 1:
            raise ConfigError("alerts: frames >= 2, leave in [0, 1), away_s >= 0, confirm >= 1")


ALERTING, SPEECH = AlertConfig(), SpeechOptions()


@dataclass(frozen=True, slots=True)
class WatchOptions:
    """How a source is watched.

    Attributes:
        captions: describe each segment.
        drop: which frame goes when too many wait for perception; ``never`` makes the source wait.
            None: ``oldest`` for a live source, ``never`` for any other.
        refresh_s: seconds, > 0, after which a live scene that goes on and changes is described
            again; infinite for never.
        stats_s: seconds between ``Stats``, >= 0, one more at the end; None for none.
        alerts: descriptions to wait for.
        alerting: how they are.
        confirm_alerts: ask the model whether it sees an alert in its frame before it is reported.
            Off by default: it takes a reply an alert, of a model that reads pictures.
        until: a condition such as ``the parcel is gone``; once the model finds it to hold the
            stream ends with an ``Until``.
        speech: where the words of a file come from; other sources have none.

    Raises:
        ConfigError: a value outside its range.
    """

    captions: bool = True
    drop: Drop | None = None
    refresh_s: float = REFRESH_S
    stats_s: float | None = None
    alerts: tuple[str, ...] = ()
    alerting: AlertConfig = ALERTING
    confirm_alerts: bool = False
    until: str | None = None
    speech: SpeechOptions = SPEECH

    def __post_init__(self) -> None:
        if self.drop not in (None, *DROPS):
            raise ConfigError(f"drop {self.drop!r}: give one of {', '.join(DROPS)}")
        if not self.refresh_s > 0 or (self.stats_s is not None and not self.stats_s >= 0):
            raise ConfigError("refresh_s must be above 0, stats_s 0 or more")
        if self.until is not None and not self.until.strip():
            raise ConfigError("until is empty; give a condition, such as: the parcel is gone")


@dataclass(frozen=True, slots=True)
class WatchCallbacks:
    """What is called while a source is watched; in the caller's thread unless stated otherwise.

    Attributes:
        stop: asked before each frame; once true the stream ends as if its source had: the open
            segment is closed and captioned.
        on_text: called in the thread that makes captions with (segment, piece) as words are
            generated; where less may be shown than is generated, in the caller's, with all of it.
        question: asked between frames; a text that it returns is answered, as an ``Answer``, while
            perception goes on.
        on_answer: called with each piece of an answer.
        on_idle: called between frames, and every 0.05 s while captions are awaited; it may use the
            session.
        on_frame: called with each frame that was perceived, timed by the source's clock.
        alerts: asked after each frame for what to wait for, in place of the option ``alerts``.
    """

    stop: Callable[[], bool] | None = None
    on_text: Callable[[Segment, str], None] | None = None
    question: Callable[[], str | None] | None = None
    on_answer: Callable[[str], None] | None = None
    on_idle: Callable[[], object] | None = None
    on_frame: Callable[[Frame], object] | None = None
    alerts: Callable[[], Sequence[str]] | None = None
