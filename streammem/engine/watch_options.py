"""How a source is watched, and how it is opened for that; every option has a default that holds."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from streammem.engine.alerts import AlertConfig
from streammem.errors import ConfigError
from streammem.types import Segment
from streammem.video import Reader, VideoSource, open_source

Drop = Literal["oldest", "newest", "never"]
DROPS: tuple[Drop, ...] = ("oldest", "newest", "never")
DEFAULT_FPS = 2.0
REFRESH_S = 30.0
MAX_SIDE = 640  # pixels; more is thrown away by the encoder and by keyframes
ALERTING = AlertConfig()


@dataclass(frozen=True, slots=True)
class WatchOptions:
    """How a source is watched.

    Attributes:
        fps: frames a second that are perceived.
        start: seconds at which a file is entered.
        end: seconds at which it is left; None for its end.
        sparse: keyframes only, for skimming long files.
        reader: what decodes files.
        max_side: pixels to which the longer side is shrunk.
        speak: emit captions.
        stop: asked before each frame; once true the stream ends as if its source had: the open
            segment is closed and said.
        on_text: called in the speaker's thread with (segment, piece) as words are generated; where
            less may be said than is generated, in the caller's, with all that is said.
        reconnect: a live source that is lost is awaited instead of ending.
        drop: which frame goes when too many wait for perception; ``never`` makes the source wait.
            None: ``oldest`` for a live source, ``never`` for any other.
        refresh_s: seconds, > 0, after which a live scene that goes on and changes is described
            again; infinite for never.
        stats_s: seconds between ``Stats``, >= 0, one more at the end; None for none.
        alerts: descriptions to wait for.
        alerting: how they are.
        question: asked between frames; a text that it returns is answered, as an ``Answer``, while
            perception goes on.
        on_answer: called in the caller's thread with each piece of an answer.
    """

    fps: float | None = DEFAULT_FPS
    start: float = 0.0
    end: float | None = None
    sparse: bool = False
    reader: Reader = "pyav"
    max_side: int = MAX_SIDE
    speak: bool = True
    stop: Callable[[], bool] | None = None
    on_text: Callable[[Segment, str], None] | None = None
    reconnect: bool = False
    drop: Drop | None = None
    refresh_s: float = REFRESH_S
    stats_s: float | None = None
    alerts: tuple[str, ...] = ()
    alerting: AlertConfig = ALERTING
    question: Callable[[], str | None] | None = None
    on_answer: Callable[[str], None] | None = None

    def __post_init__(self) -> None:
        if self.drop not in (None, *DROPS):
            raise ConfigError(f"drop {self.drop!r}: give one of {', '.join(DROPS)}")
        if not self.refresh_s > 0 or (self.stats_s is not None and not self.stats_s >= 0):
            raise ConfigError("refresh_s must be above 0, stats_s 0 or more")


def open_for(source: object, options: WatchOptions) -> VideoSource:
    """Open a source with the sampling that the options ask for."""
    return open_source(
        source,  # type: ignore[arg-type]
        fps=options.fps,
        start=options.start,
        end=options.end,
        max_side=options.max_side,
        sparse=options.sparse,
        reader=options.reader,
        reconnect=options.reconnect,
    )
