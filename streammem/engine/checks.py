"""What a model is asked while a source is watched: is an alert true, does a condition hold?

    checks = Checks(session, until="the parcel is gone")
    checks.confirm(alert, frame.pixels)         # asked in the language model's thread
    for event in checks.look(frame): ...        # the condition, where the scene has changed
    for asked, verdict in checks.results(): ...

Perception of a live source never waits for a verdict; that of any other does, so that what comes of
a file does not depend on how fast the model is.
"""

import logging
import queue
import time
from collections import deque
from collections.abc import Iterator

import numpy as np

from streammem.captioning.scheduler import Generated, LanguageScheduler, take
from streammem.engine.session import Session
from streammem.errors import ConfigError, StreammemError
from streammem.memory.entry import decode_keyframe
from streammem.models.protocols import EvidenceItem, StreamModel
from streammem.qa.checking import (
    DECODING,
    check_prompt,
    holds_question,
    shows_question,
    verdict,
)
from streammem.types import Alert, Frame, Notice, Until
from streammem.video.pixels import fitted_pixels

log = logging.getLogger(__name__)
MAX_WAITING = 8  # alerts that wait for their verdict; more are reported unconfirmed
PICTURE_SIDE = 640
STILL_COSINE = 0.98  # as for captions of long scenes: above it nothing has changed
STOP_S = 5.0  # that a verdict is awaited when the watching is stopped

Checked = Alert | Until


class Checks:
    """Questions of yes or no about one stream's frames, answered one after the other.

    Args:
        session: that perceives the stream; its model's ``answer_generator`` is asked, which reads
            pictures, see ``check_reads``.
        until: the condition to look for; None for none.
        refresh_s: seconds after which an open scene that has changed is looked at again.
        scheduler: of the generator that is asked, where it has one already.

    Attributes:
        scheduler: whose lock is to be held while the same generator is used otherwise.
    """

    def __init__(
        self,
        session: Session,
        until: str | None,
        refresh_s: float,
        scheduler: LanguageScheduler | None = None,
    ) -> None:
        self._session, self._until, self._refresh_s = session, until, refresh_s
        self._generator = session.model.answer_generator
        self._own = scheduler is None
        self.scheduler = scheduler or LanguageScheduler(self._generator)
        self._verdicts: queue.Queue[Generated | BaseException] = queue.Queue()
        self._asked: deque[Checked] = deque()  # in the order in which verdicts come
        self._looked: tuple[float, np.ndarray] | None = None  # time and key, when last asked
        self._agreed = False  # the last look said yes: a second one must agree

    @property
    def num_waiting(self) -> int:
        """Questions without a verdict."""
        return len(self._asked)

    def confirm(self, alert: Alert, picture: np.ndarray) -> bool:
        """Ask whether a picture [H, W, 3] shows an alert; return False where too many wait."""
        if len(self._asked) >= MAX_WAITING:
            return False
        shown = fitted_pixels(picture, PICTURE_SIDE)
        item = EvidenceItem(alert.time, alert.time, keyframes=(shown,))
        self._ask(alert, [item], shows_question(alert.query))
        return True

    def look(self, frame: Frame, *, at_end: bool = False) -> bool:
        """Ask whether the condition holds, if the scene has changed since it was asked last.

        The model sees the scene before, where one is kept, and the newest frame.

        Args:
            frame: the newest, timed by the memory's clock.
            at_end: no other frame will come.

        Returns:
            Whether it was asked.
        """
        newest, session = self._session.newest, self._session
        if self._until is None or newest is None or any(isinstance(a, Until) for a in self._asked):
            return False
        number = session.next_segment
        if self._looked is not None and not self._agreed:
            asked_at, key = self._looked
            # A boundary settles some frames later: this scene may have been looked at already.
            is_new = bool(session.open_frames) and session.open_frames[0].time > asked_at
            is_still = float(key @ newest.key) >= STILL_COSINE
            waits = frame.time - asked_at < self._refresh_s and not at_end
            if not is_new and (is_still or waits):
                return False
        self._looked = (frame.time, newest.key)
        items = [EvidenceItem(frame.time, frame.time, keyframes=(_small(frame),))]
        before = session.memory.get(number - 1) if number else None
        jpeg = session.memory.keyframe(number - 1) if before else None
        if before and jpeg and self._generator.reads.pictures > 1:
            shown = (decode_keyframe(jpeg),)
            items.insert(0, EvidenceItem(before.start, before.end, keyframes=shown))
        asked = Until(self._until, frame.time, number)
        self._ask(asked, items, holds_question(self._until))
        return True

    def holds(self, answer: bool | None, *, at_end: bool = False) -> bool:
        """Take in a verdict on the condition; return whether it holds: two in a row must agree."""
        before, self._agreed = self._agreed, bool(answer)
        return bool(answer) and (before or at_end)

    def results(self, wait_s: float = 0.0) -> Iterator[tuple[Checked, bool | None] | Notice]:
        """Yield verdicts that are there, in the order of the questions.

        Args:
            wait_s: seconds to wait for all that are asked; inf waits for each.

        Yields:
            A question with its verdict, None where the reply is neither yes nor no; a ``Notice``
            before one whose model failed.
        """
        until = time.monotonic() + wait_s
        while self._asked:
            try:
                made = take(self._verdicts, self.scheduler.thread) if wait_s else None
                made = made or self._verdicts.get_nowait()
            except queue.Empty:
                if time.monotonic() < until:
                    continue
                return
            asked = self._asked.popleft()
            if isinstance(made, StreammemError):
                yield Notice(f"what is seen could not be checked: {made}")
                yield asked, None
            elif isinstance(made, BaseException):
                raise made
            else:
                reply = made.replies[0].text
                log.info("asked at %.1f s: %s", asked.time, " ".join(reply.split())[:200])
                yield asked, verdict(reply)

    def unanswered(self) -> list[Checked]:
        """Give up on what has no verdict, and return it."""
        left = list(self._asked)
        self._asked.clear()
        return left

    def close(self) -> None:
        """End the thread, if it is this object's own."""
        if self._own:
            self.scheduler.close()

    def _ask(self, asked: Checked, items: list[EvidenceItem], question: str) -> None:
        self._asked.append(asked)
        generator = self._generator
        self.scheduler.ask(
            lambda: check_prompt(generator, items, question), DECODING, self._verdicts.put
        )


def check_reads(model: StreamModel) -> None:
    """Refuse to check anything by a model that reads no pictures.

    Raises:
        ConfigError: it reads none.
    """
    if not model.answer_generator.reads.pictures:
        raise ConfigError(
            f"{model.name} reads no pictures, so it can neither confirm alerts nor watch "
            "until something holds; answer with a model that does (--answer-with)"
        )


def _small(frame: Frame) -> np.ndarray:
    return fitted_pixels(frame.pixels, PICTURE_SIDE)
