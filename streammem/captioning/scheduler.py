"""The scheduler of a language model: captions in batches, answers between their steps.

    scheduler = LanguageScheduler(model.generator)
    captions = CaptionQueue(scheduler, captioner)
    captions.submit(CaptionJob(request, time.monotonic()))
    for result in captions.results(max_pending=0): ...

One scheduler serves one stream or all sessions of a server. It has one thread, which generates
captions; answers are generated in the threads that ask for them. ``lm_lock`` is held for one step
of a generation at a time, so that neither waits longer than a step for the other.
"""

import logging
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from collections.abc import Generator as Steps
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from statistics import median
from typing import NamedTuple, TypeVar, cast

from streammem.captioning.captioner import Captioner, CaptionRequest
from streammem.errors import StreammemError
from streammem.models.backbones.language import GenerationConfig, GrowingReply, Prompt, Replies
from streammem.models.protocols import (
    EvidenceItem,
    Generator,
    Reads,
    Tool,
    ToolCall,
    ToolGenerator,
    ToolTurn,
)

log = logging.getLogger(__name__)
T = TypeVar("T")
# Captions of one batch. More would rather make Ctrl-C wait longer, for all that are pending are
# generated then. CPU of the best of eight with AVX2: 0.93 s alone, 0.63 of two, 0.39 of eight.
MAX_BATCH = 8
MAX_REPLIES = 64  # candidates of a batch; those of a caption share what they have in common
BATCH_WAIT_S = 5.0  # that a caption of a file waits for others, to be generated with them
POLL_S = 0.05
# A live caption may take a quarter of the time in which a camera's scenes usually follow each
# other: the rest is left to answers, to scenes that are shorter, and to what else the machine does.
USUAL_SCENE_S, LIVE_SHARE = 10.0, 0.25
LIVE_CAPTION_S = LIVE_SHARE * USUAL_SCENE_S
MEASURED_STEPS, TIMED_STEPS = 10, 5  # candidates share their first words: the last steps count


def batch_size(captions: int, candidates: int) -> int:
    """Return how many of ``captions`` make a batch where each is one of several candidates."""
    return max(1, min(captions, MAX_REPLIES // candidates))


def take(items: "queue.Queue[T]", thread: threading.Thread) -> T:
    """Take what a thread has put into its queue.

    Raises:
        queue.Empty: nothing came for ``POLL_S`` seconds.
        RuntimeError: the thread is dead without a word, and nothing will ever come.
    """
    alive = thread.is_alive()  # asked first: what it put before it died is still there
    try:
        return items.get(timeout=POLL_S if alive else 0)
    except queue.Empty:
        if alive:
            raise
        raise RuntimeError(f"the thread {thread.name} died without an error") from None


class ClosedError(StreammemError, RuntimeError):
    """A job that was not done when the scheduler was closed."""

    def __init__(self) -> None:
        super().__init__("the language model was stopped before this was generated")


class FairLock:
    """A fair (FIFO) lock."""

    def __init__(self) -> None:
        self._lock, self._taken = threading.Lock(), False
        self._waiting: deque[threading.Event] = deque()

    def __enter__(self) -> None:
        with self._lock:
            if not self._taken:
                self._taken = True
                return
            turn = threading.Event()
            self._waiting.append(turn)
        turn.wait()

    def __exit__(self, *_: object) -> None:
        with self._lock:
            if self._waiting:
                self._waiting.popleft().set()  # handed on, so it stays taken
            else:
                self._taken = False


class Generated(NamedTuple):
    """What the scheduler made of one prompt.

    Attributes:
        replies: the candidates.
        began: seconds of ``time.monotonic`` at which the first token of its batch was there.
        cpu_s: seconds of CPU since the result before it.
    """

    replies: Replies
    began: float
    cpu_s: float


@dataclass(eq=False)
class _Job:
    """A prompt that waits to be generated from.

    The scheduler's thread builds it and asks for the number of candidates: a job before it may
    decide that. ``steps`` generates otherwise than by ``Generator.replies``, and always alone.
    Streams that share (``sharer`` is the stream) have together about as many candidates as one of
    them has alone.
    """

    prompt: Callable[[], Prompt]
    decoding: GenerationConfig
    candidates: Callable[[], int]
    deliver: Callable[["Generated | BaseException"], None]
    urgent: bool = False
    sharer: object = None
    max_batch: int = MAX_BATCH
    steps: Callable[[Generator, Prompt], Iterator[Replies | None]] | None = None
    cancelled: bool = False


class LanguageScheduler:
    """Generates captions in a thread of its own, and takes turns with answers.

    Args:
        generator: used by nothing else meanwhile but through ``lm_lock``.
        on_batch: called with the size of each batch of captions.

    Attributes:
        lm_lock: held for one step of any generation; hold it longer to keep captions waiting.
        thread: generates the captions.
        batches: whether the generator gains from batches; False until the first caption is done,
            since asking may open the model.
        fitting: of how many candidates, decoded so, a live caption has time for how many; measured
            once, before there are captions to do. Used by the thread alone.
    """

    def __init__(self, generator: Generator, on_batch: Callable[[int], None] | None = None) -> None:
        self._generator, self._on_batch = generator, on_batch
        self.lm_lock = FairLock()
        self.batches = False
        self.fitting: dict[tuple[GenerationConfig, int], int] = {}
        self._changed = threading.Condition()
        self._pending: list[_Job] = []  # urgent first, then the oldest; guarded by _changed
        self._stopped = threading.Event()
        self.thread = threading.Thread(target=self._run, name="streammem-language", daemon=True)
        self.thread.start()

    def submit(self, job: _Job) -> None:
        """Queue a job; urgent ones go before all that are not."""
        with self._changed:
            if not self._stopped.is_set():
                self._pending.append(job)
                self._pending.sort(key=lambda one: not one.urgent)
                self._changed.notify_all()
                return
        job.deliver(ClosedError())

    def withdraw(self, jobs: Sequence[_Job]) -> list[_Job]:
        """Take back jobs that are not begun, and return them."""
        with self._changed:
            taken = [job for job in jobs if job in self._pending]
            self._pending = [job for job in self._pending if job not in taken]
        return taken

    def replies(
        self, prompts: Sequence[Prompt], decoding: GenerationConfig, candidates: int = 1
    ) -> list[Replies]:
        """Generate at once what the caller waits for, together with what others wait for.

        Raises:
            Exception: what the generator raised for the batch.
        """
        boxes = [queue.Queue[Generated | BaseException](1) for _ in prompts]
        for prompt, box in zip(prompts, boxes, strict=True):
            ready = partial(_same, prompt)
            self.submit(_Job(ready, decoding, partial(_same, candidates), box.put, urgent=True))
        results = [self._wait(box) for box in boxes]
        for result in results:
            if isinstance(result, BaseException):
                raise result
        return [result.replies for result in results if isinstance(result, Generated)]

    def ask(
        self,
        prompt: Callable[[], Prompt],
        decoding: GenerationConfig,
        deliver: Callable[[Generated | BaseException], None],
    ) -> None:
        """Generate one reply soon, before captions that wait, and deliver it from the thread.

        Args:
            prompt: called in the thread, builds the prompt.
            decoding: of the reply.
            deliver: called in the thread, with the reply or with what was raised.
        """
        self.submit(_Job(prompt, decoding, partial(_same, 1), deliver, urgent=True))

    def _wait(self, box: "queue.Queue[T]") -> T:
        while True:
            with suppress(queue.Empty):
                return take(box, self.thread)

    def stream(self, prompt: Prompt, decoding: GenerationConfig) -> Iterator[str]:
        """Yield an answer piece by piece, each in a turn of its own."""
        with self.lm_lock:
            pieces = self._generator.stream(prompt, decoding)
        yield from self.in_turns(pieces)

    def in_turns(self, steps: Iterator[T]) -> Iterator[T]:
        """Take each step of a generation in a turn of its own."""
        ended = object()
        while True:
            with self.lm_lock:
                step = next(steps, ended)
            if step is ended:
                return
            yield cast(T, step)

    def close(self) -> None:
        """End the thread, between two steps if it is generating; what waits fails. Idempotent."""
        with self._changed:
            self._stopped.set()
            self._changed.notify_all()
        self.thread.join()

    # -- the thread --

    def _run(self) -> None:
        error: BaseException = ClosedError()
        try:
            while taken := self._take_batch():
                batch, count = taken
                if self._generate(batch, count) and not self.batches:
                    with self.lm_lock:
                        self.batches = self._generator.batches
                if self._on_batch:
                    self._on_batch(len(batch))
        except BaseException as raised:  # noqa: BLE001, carried to the callers with its traceback
            error = raised
        with self._changed:
            self._stopped.set()
            left, self._pending = self._pending, []
        for job in left:
            job.deliver(error)

    def _take_batch(self) -> tuple[list[_Job], int] | None:
        """Wait for jobs and take the first, with others that are decoded alike; None at the end.

        Returns:
            The jobs, and the candidates of each.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._pending or self._stopped.is_set())
            if self._stopped.is_set():
                return None
            first = self._pending[0]
            count = first.candidates()
            if first.sharer:  # halved for two streams that wait, a quarter for up to four, ...
                waiting = {id(job.sharer) for job in self._pending if job.sharer}
                count = max(1, count >> (len(waiting) - 1).bit_length())
            together = self.batches and first.max_batch > 1
            most = batch_size(first.max_batch, count) if together else 1
            batch = [first]
            for job in self._pending[1:]:
                share = first.sharer and job.sharer
                alike = job.decoding == first.decoding and (share or job.candidates() == count)
                if len(batch) < min(most, job.max_batch) and alike:
                    batch.append(job)
            self._pending = [job for job in self._pending if job not in batch]
            return batch, count

    def _generate(self, batch: list[_Job], count: int) -> bool:
        """Generate a batch step by step and deliver each result as soon as it is whole.

        What fails, the model's opening too, fails for this batch alone.

        Returns:
            Whether all was generated.
        """
        left, began, mark = list(batch), 0.0, time.thread_time()
        try:
            first, prompts = batch[0], [job.prompt() for job in batch]
            with self.lm_lock:
                if first.steps:
                    steps = first.steps(self._generator, prompts[0])
                else:
                    steps = self._generator.replies(prompts, first.decoding, count)
            while left and not self._stopped.is_set() and not all(job.cancelled for job in left):
                with self.lm_lock:
                    replies = next(steps)
                began = began or time.monotonic()
                if replies is not None:
                    now = time.thread_time()
                    left.pop(0).deliver(Generated(replies, began, now - mark))
                    mark = now
            if left and self._stopped.is_set():
                raise ClosedError
        except BaseException as error:  # noqa: BLE001, carried to all that wait for the batch
            for job in left:
                job.deliver(error)
        return not left


class CaptionJob(NamedTuple):
    """A caption that is due.

    Attributes:
        request: what is to be described.
        shown_at: seconds of ``time.monotonic`` at which its last frame was there.
    """

    request: CaptionRequest
    shown_at: float


class CaptionResult(NamedTuple):
    """A caption as it was generated, not scored yet.

    Attributes:
        job: what was asked for.
        replies: to it.
        began: seconds of ``time.monotonic`` at which the first token was there.
    """

    job: CaptionJob
    replies: Replies
    began: float


@dataclass(eq=False)
class CaptionQueue:
    """The captions of one stream, generated by a scheduler in the order in which they are due.

    Args:
        scheduler: may serve other streams too.
        captioner: of the stream.
        on_text: called in the scheduler's thread with each request and piece of its caption; only
            for a captioner that does not withhold.
        max_batch: captions of the stream's that go into one batch.
        wait_s: seconds that a caption may wait for others of the stream's to make a full batch.
        adapts: take fewer candidates than the captioner's where so many would take longer than
            ``LIVE_CAPTION_S`` here: half of them, or half of that, and so on. ``warm_up`` decides.
            Such queues whose captions wait at the same time share so many.

    Attributes:
        num_candidates: replies of which a caption is chosen where none waits beside it; 0 until
            ``warm_up`` has decided.
        fewest_candidates: of which a caption was chosen; 0 before the first one.
        cpu_s: seconds that the scheduler's thread has computed for it.
        num_skipped: captions that were given up before they were begun.
    """

    scheduler: LanguageScheduler
    captioner: Captioner
    on_text: Callable[[CaptionRequest, str], None] | None = None
    max_batch: int = MAX_BATCH
    adapts: bool = False
    wait_s: float = 0.0
    cpu_s: float = 0.0
    num_skipped: int = 0
    num_candidates: int = field(init=False)
    fewest_candidates: int = 0
    _pending: deque[tuple[CaptionJob, _Job]] = field(default_factory=deque)
    _held: list[_Job] = field(default_factory=list)  # of the pending, not submitted yet
    _held_since: float = 0.0
    _done: "queue.Queue[Generated | BaseException]" = field(default_factory=queue.Queue)

    def __post_init__(self) -> None:
        self.adapts = self.adapts and self.captioner.candidates > 1
        self.num_candidates = 0 if self.adapts else self.captioner.candidates

    @property
    def num_pending(self) -> int:
        """Jobs that were submitted and whose results were not taken."""
        return len(self._pending)

    @property
    def batch_size(self) -> int:
        """Captions that are generated together; 1 until the first one is done."""
        count = self.num_candidates or self.captioner.candidates
        return batch_size(self.max_batch, count) if self.batches else 1

    @property
    def batches(self) -> bool:
        """Whether captions of this stream are generated together."""
        return self.max_batch > 1 and self.on_text is None and self.scheduler.batches

    def submit(self, job: CaptionJob) -> None:
        """Queue a job."""
        decoding, steps = self.captioner.decoding, None
        if self.on_text:
            steps = partial(_whole_reply, decoding, partial(self.on_text, job.request))
        queued = _Job(
            partial(self.captioner.prompt, job.request),
            decoding,
            lambda: self.num_candidates,
            self._done.put,
            sharer=self if self.adapts else None,
            max_batch=1 if steps else self.max_batch,
            steps=steps,
        )
        self._pending.append((job, queued))
        self._held_since = self._held_since if self._held else time.monotonic()
        self._held.append(queued)
        self._release()

    def _release(self, *, at_once: bool = False) -> None:
        """Submit what is held, once it makes a batch or has waited long enough."""
        waits = time.monotonic() < self._held_since + self.wait_s and not at_once
        if self._held and not (waits and self.batches and len(self._held) < self.batch_size):
            for queued in self._held:
                self.scheduler.submit(queued)
            self._held.clear()

    def warm_up(self, request: CaptionRequest) -> None:
        """Generate a token that is dropped: the first one takes seconds. Decide what adapts.

        To be called before any caption is submitted, and always where the queue adapts.
        """
        self.scheduler.submit(
            _Job(
                partial(self.captioner.prompt, request),
                self.captioner.decoding,
                lambda: 0,  # like no caption
                self._warmed_up,
                max_batch=1,
                steps=self._warm_up,
            )
        )

    def _warm_up(self, generator: Generator, prompt: Prompt) -> Iterator[Replies | None]:
        """Open the model; then measure how many candidates a live caption has time for."""
        decoding, most, known = self.captioner.decoding, self.captioner.candidates, None
        if self.adapts:
            known = self.scheduler.fitting.get((decoding, most))
        if known is None:
            for _ in generator.replies([prompt], GenerationConfig(max_new_tokens=1)):
                yield None
        if self.adapts and known is None:
            known, took_s = most, LIVE_CAPTION_S + 1
            while known > 1:
                took_s = yield from _caption_seconds(generator, prompt, decoding, known)
                if took_s <= LIVE_CAPTION_S:
                    break
                known //= 2
            self.scheduler.fitting[decoding, most] = known
            log.info(
                "live captions are the best of %d candidates (%d by default): the longest caption "
                "takes %.2f s of %.2f s",
                *(known, most, took_s, LIVE_CAPTION_S),
            )
        self.num_candidates = known or self.num_candidates
        yield ()

    def _warmed_up(self, _: "Generated | BaseException") -> None:
        """Take the default if nothing could be measured; captions tell what is wrong."""
        self.num_candidates = self.num_candidates or self.captioner.candidates

    def skip(self, most: int) -> None:
        """Give up the oldest jobs that are not begun, until only ``most`` are to be generated.

        The one that is being generated is among them.
        """
        for pair in list(self._pending):
            if len(self._pending) - self._done.qsize() <= most:
                return
            if self.scheduler.withdraw([pair[1]]):
                self._pending.remove(pair)
                self.num_skipped += 1

    def results(self, max_pending: int | None) -> Iterator[CaptionResult | None]:
        """Yield finished captions; block while more than ``max_pending`` are outstanding.

        None never blocks. While it blocks, it yields None every ``POLL_S`` seconds.

        Raises:
            Exception: what the generator raised.
        """
        self._release(at_once=max_pending is not None and len(self._pending) > max_pending)
        while self._pending and (
            (max_pending is not None and len(self._pending) > max_pending) or not self._done.empty()
        ):
            try:
                done = take(self._done, self.scheduler.thread)
            except queue.Empty:
                yield None
                continue
            job, _ = self._pending.popleft()
            if isinstance(done, BaseException):
                raise done
            self.cpu_s += done.cpu_s
            fewest = min(self.fewest_candidates or self.num_candidates, len(done.replies))
            self.fewest_candidates = fewest
            yield CaptionResult(job, done.replies, done.began)

    def close(self) -> None:
        """Give up what is pending; a batch in which all is given up ends early. Idempotent."""
        self.scheduler.withdraw([queued for _, queued in self._pending])
        for _, queued in self._pending:
            queued.cancelled = True
        self._pending.clear()
        self._held.clear()


@dataclass(frozen=True, eq=False)
class ScheduledGenerator:
    """A ``Generator`` that many threads may use: each call goes through the scheduler.

    Args:
        generator: the scheduler's.
        scheduler: its scheduler.
    """

    generator: Generator
    scheduler: LanguageScheduler

    @property
    def reads(self) -> Reads:
        """As the generator's."""
        return self.generator.reads

    @property
    def decoding(self) -> GenerationConfig:
        """As the generator's."""
        return self.generator.decoding

    @property
    def batches(self) -> bool:
        """As far as the scheduler knows."""
        return self.scheduler.batches

    def caption_prompt(self, item: EvidenceItem, instruction: str | None = None) -> Prompt:
        """Build a prompt in a turn of its own."""
        with self.scheduler.lm_lock:
            return self.generator.caption_prompt(item, instruction)

    def answer_prompt(self, items: Sequence[EvidenceItem], question: str) -> Prompt:
        """Build a prompt in a turn of its own."""
        with self.scheduler.lm_lock:
            return self.generator.answer_prompt(items, question)

    def replies(
        self, prompts: Sequence[Prompt], decoding: GenerationConfig, candidates: int = 1
    ) -> Iterator[Replies | None]:
        """Generate in the common batches, before what streams are waiting for."""
        yield from self.scheduler.replies(prompts, decoding, candidates)

    def stream(self, prompt: Prompt, decoding: GenerationConfig) -> Iterator[str]:
        """Generate between the steps of others."""
        return self.scheduler.stream(prompt, decoding)

    def converse(
        self,
        prompt: Prompt,
        turns: Sequence[ToolTurn],
        tools: Sequence[Tool],
        decoding: GenerationConfig,
    ) -> Iterator[str | ToolCall | None]:
        """Generate between the steps of others; see ``ToolGenerator``."""
        caller = cast(ToolGenerator, self.generator)
        return self.scheduler.in_turns(caller.converse(prompt, turns, tools, decoding))


def _same(value: T) -> T:
    return value


def _caption_seconds(
    generator: Generator, prompt: Prompt, decoding: GenerationConfig, count: int
) -> Steps[None, None, float]:
    """Measure how long the longest caption takes; yield None after each step.

    The prompt is read and ``MEASURED_STEPS`` tokens of each candidate are generated; the median of
    the last ``TIMED_STEPS`` steps stands for all, so that one during which the machine was busy
    does not count.
    """
    few = replace(decoding, max_new_tokens=min(decoding.max_new_tokens, MEASURED_STEPS + 1))
    steps, times = generator.replies([prompt], few, count), list[float]()
    replies: Replies | None = None
    while replies is None:
        began = time.monotonic()
        replies = next(steps)
        times.append(time.monotonic() - began)
        yield None
    # The first step reads the prompt. All may have ended with the first token.
    step_s = median(times[1:][-TIMED_STEPS:]) if len(times) > 1 else 0.0
    return times[0] + (decoding.max_new_tokens - 1) * step_s


def _whole_reply(
    decoding: GenerationConfig, on_text: Callable[[str], None], generator: Generator, prompt: Prompt
) -> Iterator[Replies | None]:
    """Pass the pieces of a reply on as they come; yield None for each, then the reply."""
    pieces = []
    for piece in generator.stream(prompt, decoding):
        pieces.append(piece)
        if piece:  # it is empty while a server is waited for
            on_text(piece)
        yield None
    yield (GrowingReply("".join(pieces).strip(), [], []),)
