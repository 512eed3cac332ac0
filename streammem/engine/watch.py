"""Watching: a source goes through a session, and what comes of it is given as events.

Frames come from the reader's thread (`reader.py`), captions from the thread of the language model's
scheduler (`captioning/scheduler.py`). The session is touched by the caller's thread alone.
"""

import math
import time
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from streammem.audio.scene_sound import LONGEST_S, LiveSound, SoundWindow
from streammem.captioning.captioner import Captioner, CaptionRequest
from streammem.captioning.scheduler import (
    BATCH_WAIT_S,
    MAX_BATCH,
    POLL_S,
    CaptionJob,
    CaptionQueue,
    CaptionResult,
    LanguageScheduler,
)
from streammem.engine.alerts import Alerts
from streammem.engine.checks import STOP_S, Checks, check_reads
from streammem.engine.long_scenes import LongScene
from streammem.engine.reader import Reader
from streammem.engine.session import Session
from streammem.engine.speech import SceneNotes, Speech, open_speech
from streammem.engine.watch_options import WatchCallbacks, WatchOptions
from streammem.errors import ServedModelError, StreammemError, TruncatedError
from streammem.models.vlm.server import REQUESTS
from streammem.types import Alert, Caption, Event, Frame, Note, Notice, Segment, Stats
from streammem.video import SourceOptions, VideoSource, open_with

SEGMENTS_AHEAD = 4  # captions that may be pending before a file's perception waits, at least
# So many batches, where scenes are captioned together. One is generated and one is ready, so that
# neither thread waits for the other: with two, each stood still for a fifth of the time.
BATCHES_AHEAD = 3
LIVE_SEGMENTS_AHEAD = 1  # of a live source; beyond them the oldest stays without a caption
HEARD_AT_STOP_S, HEARD_AT_END_S = 5.0, 60.0  # of a live source, for what was said last
DEFAULTS, NO_CALLBACKS, SOURCE = WatchOptions(), WatchCallbacks(), SourceOptions()


def watch(
    session: Session,
    source: Any,
    options: WatchOptions = DEFAULTS,
    *,
    source_options: SourceOptions = SOURCE,
    callbacks: WatchCallbacks = NO_CALLBACKS,
    scheduler: LanguageScheduler | None = None,
) -> Iterator[Event]:
    """Perceive a source and yield its events as they come: segments, each with its caption.

    A live source is never waited for, nor does it wait: frames and captions that cannot keep up
    are dropped and counted (``Stats``), and a scene that goes on is described again.

    Args:
        session: takes in the frames; on return it holds the whole stream.
        source: what ``open_source`` takes, or an open ``VideoSource``.
        options: see ``WatchOptions``.
        source_options: how the source is opened, unless it is open already.
        callbacks: see ``WatchCallbacks``.
        scheduler: generates the captions, where it serves other sessions too: then the session's
            own model must go through it. By default one is made for this source.

    Returns:
        An iterator; close it (or break off) to stop: threads end and the source is closed. A
        source that breaks off gives what it had, then a ``Notice``.

    Raises:
        ConfigError, SourceError: at the call, before anything is yielded.
    """
    # 1. What the model cannot do, before a camera is connected for it.
    if options.confirm_alerts or options.until is not None:
        check_reads(session.model)
    alerts = None
    if options.alerts or callbacks.alerts:
        alerts = Alerts(session.model.text_encoder, options.alerts, options.alerting)
    # 2. The source, and what is heard in it.
    opened = source if isinstance(source, VideoSource) else open_with(source, source_options)
    if not session.source:
        session.source = opened.name
    try:
        speech = open_speech(opened, options.speech)
        session.speech = speech.subtitles
        session.sound = _open_sound(opened, session) if session.config.sound != "off" else None
    except StreammemError:
        opened.close()
        raise
    return _Watching(session, opened, options, callbacks, alerts, scheduler, speech).events()


def _open_sound(source: VideoSource, session: Session) -> SoundWindow | None:
    """Open the sound of a source for a model that listens; None where it can have none."""

    def report(reason: str) -> None:
        if session.config.sound == "notice":
            source.notices.append(f"{reason}: scenes are described without sound from here on")

    if source.sound_beside:
        came = LiveSound()
        source.on_sound = came.push
        return SoundWindow(came, report, LONGEST_S)
    sound = source.sound_pass(first_channel=session.config.channels == "first")
    if sound is None and source.live:
        report(f"{source.name}: has no sound")
    return None if sound is None else SoundWindow(sound, report)


class _Watching:
    """One source on its way through a session."""

    def __init__(
        self,
        session: Session,
        source: VideoSource,
        options: WatchOptions,
        callbacks: WatchCallbacks,
        alerts: Alerts | None,
        scheduler: LanguageScheduler | None,
        speech: Speech,
    ) -> None:
        self._session, self._source, self._options = session, source, options
        self._callbacks, self._alerts, self._shared = callbacks, alerts, scheduler
        self._live = source.live
        self._scenes = LongScene(session, options.refresh_s) if self._live else None
        # Words that may be withheld are not passed on before that is decided.
        self._as_generated = None if session.captioner.withholds else callbacks.on_text
        self._num_frames = self._num_segments = self._num_captions = 0
        self._perceive_s = self._perceived_until = self._caption_lag_s = 0.0
        self._num_refused, self._holds = 0, False
        self._newest: Frame | None = None  # timed by the memory's clock
        self._closed: list[Segment] = []  # to be yielded
        self._notes: dict[int, tuple[Note, ...]] = {}  # by segment, to be yielded
        self._speech = speech
        self._recognised: SceneNotes | None = None
        self._asked_before = REQUESTS.counts
        self._failure = ""  # of a model server, since the last caption
        self._stats_at = 0.0 if options.stats_s is None else time.monotonic() + options.stats_s

    def events(self) -> Iterator[Event]:
        options = self._options
        drop = options.drop or ("oldest" if self._live else "never")
        described = options.captions and self._session.captioner.can_describe
        self._captions = self._open_captions() if described else None
        asks = options.confirm_alerts or options.until is not None
        self._checks = self._open_checks() if asks else None
        if self._speech.is_heard:
            self._recognised = SceneNotes(self._session, self._source, self._speech)
        self._reader = Reader(self._source, drop)
        self._session.on_wait = self._keep_up
        try:
            yield from self._stream()
            self._reader.stop()
            yield from self._notices()
            if options.stats_s is not None:
                yield self._stats()
            if isinstance(self._reader.broken, TruncatedError):
                yield Notice(str(self._reader.broken))
            elif self._reader.broken:
                raise self._reader.broken
        finally:
            self._session.on_wait = None
            self._reader.stop()
            if self._recognised:
                self._recognised.close()
            if self._checks:
                self._checks.close()
            if self._captions:
                self._captions.close()
                if not self._shared:
                    self._captions.scheduler.close()

    def _open_captions(self) -> CaptionQueue:
        session, on_text = self._session, self._as_generated
        captioner = session.captioner
        if self._source.sparse and session.config.candidates is None:
            # Skimming is to be fast.
            captioner = Captioner(session.model, replace(session.config.captioning, candidates=1))
        scheduler = self._shared or LanguageScheduler(session.model.generator)
        alone = self._live and not self._shared  # a live caption never waits for others
        captions = CaptionQueue(
            scheduler,
            captioner,
            (lambda request, piece: on_text(request.segment, piece)) if on_text else None,
            1 if alone or on_text else MAX_BATCH,
            # What is generated of a file never depends on how fast the machine is.
            adapts=self._live and session.config.candidates is None,
            wait_s=0.0 if self._live else BATCH_WAIT_S,
        )
        if self._live:
            captions.warm_up(session.blank_request())
        return captions

    def _open_checks(self) -> Checks:
        options, model = self._options, self._session.model
        # One generator is used by one thread: where it captions, too, it has a scheduler.
        captions = model.answer_generator is model.generator
        scheduler = self._captions.scheduler if self._captions and captions else None
        return Checks(self._session, options.until, options.refresh_s, scheduler)

    def _stream(self) -> Iterator[Event]:
        for frame in self._reader.frames(self._callbacks.stop):
            if frame:
                self._push(frame)
            yield from self._due()
            if frame and (self._alerts or self._checks):
                yield from self._alerted(frame)
            yield from self._asides()
            if self._holds:
                self._reader.stopped = True
                break
        self._reader.halt()
        if self._checks:
            yield from self._checked_at_end(self._checks)
        self._close(self._session.flush(None if self._reader.stopped else self._source.end))
        yield from self._due(at_end=True)
        if self._checks:
            yield from self._checked_rest(self._checks)  # alerts of the last captions
        for segment in list(self._notes):
            yield from self._notes.pop(segment)
        yield from self._heard_at_end()
        speech, film_end = self._session.speech, self._source.end
        if speech and film_end is not None and not (self._reader.stopped or self._source.was_cut):
            beyond = speech.after(film_end)
            yield from (beyond,) if beyond else ()

    def _keep_up(self) -> None:
        """Perceive the frames that came while an answer was waited for."""
        while frame := self._reader.waiting_frame():
            self._push(frame)

    def _push(self, frame: Frame) -> None:
        began = time.thread_time()
        wall_zero = self._source.wall_zero
        # A live source goes on in the memory's time; a file's clock is its own in every pass.
        if not self._num_frames and self._source.goes_on:
            self._session.go_on(frame.time, wall_zero)
        if wall_zero is not None:
            self._session.wall_zero = wall_zero - self._session.time_offset
        closed = self._session.push(frame)
        self._perceive_s += time.thread_time() - began
        self._close(closed)
        self._num_frames += 1
        self._perceived_until = frame.time
        if self._callbacks.on_frame:
            self._callbacks.on_frame(frame)

    def _close(self, segments: Iterable[Segment]) -> None:
        """Hold segments that the session has just closed, until ``_due`` yields them."""
        for segment in segments:
            self._closed.append(segment)
            self._notes[segment.id] = self._session.notes(segment)
            self._num_segments += 1

    def _due(self, *, at_end: bool = False) -> Iterator[Event]:
        """Yield closed segments, and captions until few enough segments wait for theirs."""
        closed, self._closed = self._closed, []
        for segment in closed:
            if self._recognised:
                self._recognised.closed(segment)
            if self._captions:
                self._submit(self._captions, segment)
            yield segment
            if not self._captions or self._live:
                yield from self._notes.pop(segment.id, ())
        if self._captions:
            if self._scenes and not self._captions.num_pending and (job := self._scenes.due()):
                self._scenes.begun(job)
                self._captions.submit(job)
            ahead = max(SEGMENTS_AHEAD, BATCHES_AHEAD * self._captions.batch_size)
            for result in self._results(0 if at_end else None if self._live else ahead):
                if result is None:
                    yield from self._answered()
                    # Words of a live source do not wait for captions.
                    if self._live and self._recognised and self._num_frames:
                        yield from self._recognised.due()
                elif isinstance(result, Notice):
                    yield result
                else:
                    caption, alerts = self._caption(self._captions.captioner, result)
                    yield caption
                    # After it, so that all cues of a subtitle file lie in order.
                    yield from self._notes.pop(caption.segment, ())
                    yield from alerts

    def _results(self, max_pending: int | None) -> Iterator[CaptionResult | Notice | None]:
        """Yield finished captions, as ``CaptionQueue.results`` does.

        A model server that fails takes one caption from a live source, which is watched for days,
        and is told of; of a file it is an error.
        """
        assert self._captions
        while True:
            try:
                yield from self._captions.results(max_pending)
                return
            except ServedModelError as error:
                if not self._live:
                    raise
                self._captions.num_skipped += 1
                failure, self._failure = self._failure, str(error)
                if self._failure != failure:
                    yield Notice(self._failure)

    def _submit(self, captions: CaptionQueue, segment: Segment) -> None:
        if not self._scenes:
            captions.submit(CaptionJob(self._session.request(segment), time.monotonic()))
            return
        rest = self._scenes.closed(segment)
        if rest:
            captions.skip(LIVE_SEGMENTS_AHEAD)
            self._scenes.begun(rest)
            captions.submit(rest)

    def _caption(
        self, captioner: Captioner, result: CaptionResult
    ) -> tuple[Caption, tuple[Alert, ...]]:
        """Keep a finished caption; return it with the alerts that it raises."""
        request, segment = result.job.request, result.job.request.segment
        self._num_captions, self._failure = self._num_captions + 1, ""
        self._caption_lag_s = result.began - result.job.shown_at
        scored = captioner.score(request, result.replies)
        caption = (self._scenes or self._session).keep(segment, scored)
        if self._callbacks.on_text and not self._as_generated and caption.text:
            self._callbacks.on_text(segment, caption.text)
        if not (self._alerts and self._alerts.queries):
            return caption, ()
        picture = partial(self._picture_of, request)
        found = self._alerts.read(caption, request.keys, scored.key, picture)
        return caption, tuple(alert for alert in found if not self._is_asked(alert, picture()))

    def _picture_of(self, request: CaptionRequest) -> np.ndarray | None:
        """Return a picture of a captioned scene: of one that is still open, the newest frame."""
        if request.keyframes:
            return request.keyframes[0]
        number = request.segment.id
        if number == self._session.next_segment and self._newest is not None:
            return self._newest.pixels
        try:
            return self._session.keyframe(number)
        except KeyError:  # it was dropped meanwhile
            return None

    def _alerted(self, frame: Frame) -> Iterator[Event]:
        alerts = self._alerts
        if alerts and self._callbacks.alerts:
            alerts.change(self._callbacks.alerts())
        newest = self._session.newest
        if newest is None or not ((alerts and alerts.queries) or self._checks):
            return
        frame = self._newest = replace(frame, time=frame.time + self._session.time_offset)
        seen = alerts.take(frame, newest.key, self._session.next_segment) if alerts else ()
        for alert in seen:
            if not self._is_asked(alert, frame.pixels):
                yield alert
        if self._checks:
            self._checks.look(frame)

    def _is_asked(self, alert: Alert, picture: np.ndarray | None) -> bool:
        """Ask the model to confirm an alert, where it is to and can; it is yielded at once else."""
        checks = self._checks if self._options.confirm_alerts else None
        return bool(checks and picture is not None and checks.confirm(alert, picture))

    def _checked(self, checks: Checks, wait_s: float, *, at_end: bool = False) -> Iterator[Event]:
        """Yield what the model has been asked about and has not denied."""
        for result in checks.results(wait_s):
            if isinstance(result, Notice):
                yield result
                continue
            asked, verdict = result
            if isinstance(asked, Alert) and verdict is False:
                assert self._alerts  # which raised it
                self._alerts.deny(asked)
                self._num_refused += 1
            elif isinstance(asked, Alert):
                yield replace(asked, confirmed=verdict)
            elif not self._holds and checks.holds(verdict, at_end=at_end):
                self._holds = True
                yield asked

    def _checked_at_end(self, checks: Checks) -> Iterator[Event]:
        """Look a last time, and yield what is left; unconfirmed what would have to be awaited."""
        if self._newest is not None and not self._reader.stopped:
            yield from self._checked(checks, math.inf)
            checks.look(self._newest, at_end=True)
        yield from self._checked_rest(checks)

    def _checked_rest(self, checks: Checks) -> Iterator[Event]:
        """Yield what the model has been asked; where the watching is stopped only a while."""
        stopped = self._reader.stopped
        yield from self._checked(checks, STOP_S if stopped else math.inf, at_end=not stopped)
        yield from (asked for asked in checks.unanswered() if isinstance(asked, Alert))

    def _asides(self) -> Iterator[Event]:
        """Yield what does not come from frames: notices, counters, answers."""
        yield from self._notices()
        # Only once it is known where the memory's time stands.
        if self._recognised and self._num_frames:
            yield from self._recognised.due()
        every_s = self._options.stats_s
        if every_s is not None and time.monotonic() >= self._stats_at:
            self._stats_at = time.monotonic() + every_s
            yield self._stats()
        if self._checks:
            yield from self._checked(self._checks, 0.0 if self._live else math.inf)
        yield from self._answered()

    def _answered(self) -> Iterator[Event]:
        if self._callbacks.on_idle:
            self._callbacks.on_idle()
        if self._callbacks.question and (question := self._callbacks.question()):
            yield from self._answer(question)

    def _is_stopping(self) -> bool:
        return self._reader.stopped or bool(self._callbacks.stop and self._callbacks.stop())

    def _heard_at_end(self) -> Iterator[Event]:
        """Yield what is recognised of the last scenes; not of the rest of a file that was cut.

        Of a source that was stopped, what was said last is waited for only where it comes now.
        """
        notes = self._recognised
        if not (notes and self._num_frames):
            return
        notes.end()
        began, at_stop, at_end = time.monotonic(), 0.0, math.inf
        if self._live:
            at_stop, at_end = HEARD_AT_STOP_S, HEARD_AT_END_S
        while notes.awaits:
            waited_s = time.monotonic() - began
            if waited_s >= (at_stop if self._is_stopping() else at_end):
                break
            yield from notes.due(POLL_S)
        yield from notes.due(last=True)

    def _notices(self) -> Iterator[Event]:
        while self._session.speech and self._session.speech.notices:
            yield self._session.speech.notices.pop(0)
        while self._alerts and self._alerts.notices:
            yield Notice(self._alerts.notices.pop(0))
        while self._source.notices:
            # What a finite source lacks it raises; its notices tell what it was not meant to read.
            is_failure = self._live or not self._source.finite
            yield Notice(self._source.notices.popleft(), is_failure=is_failure)

    def _answer(self, question: str) -> Iterator[Event]:
        """Answer while captions pause and frames are perceived between two words."""

        def on_text(piece: str) -> None:
            if self._callbacks.on_answer and piece:  # it is empty while a server is waited for
                self._callbacks.on_answer(piece)

        # A shared scheduler lets answers in between the steps of captions by itself.
        try:
            with ExitStack() as own:
                if not self._shared:
                    schedulers = [s.scheduler for s in (self._captions, self._checks) if s]
                    for scheduler in dict.fromkeys(schedulers):
                        own.enter_context(scheduler.lm_lock)
                answer = self._session.ask(question, on_text)
            yield answer
        except ServedModelError as error:
            yield Notice(str(error))
        yield from self._due()

    def _stats(self) -> Stats:
        reader, captions = self._reader, self._captions
        listener = self._recognised.listeners[0] if self._recognised else None
        return Stats(
            frames=self._num_frames,
            segments=self._num_segments,
            captions=self._num_captions,
            perceive_s=self._perceive_s,
            speak_s=captions.cpu_s if captions else 0.0,
            captured=reader.captured,
            waiting=reader.waiting,
            dropped_full=reader.dropped_full,
            dropped_at_stop=reader.dropped_at_stop,
            captions_skipped=captions.num_skipped if captions else 0,
            connections=self._source.num_connections,
            damaged=self._source.num_damaged,
            lag_s=max(0.0, reader.captured_until - self._perceived_until),
            caption_lag_s=self._caption_lag_s if self._live else 0.0,
            candidates=captions.num_candidates if captions else 0,
            fewest_candidates=captions.fewest_candidates if captions else 0,
            alerts_refused=self._num_refused,
            sound_s=listener.sound_s if listener else 0.0,
            sound_skipped_s=listener.skipped_s if listener else 0.0,
            note_lag_s=listener.lag_s if listener else 0.0,
            **REQUESTS.counts.since(self._asked_before)._asdict(),
        )
