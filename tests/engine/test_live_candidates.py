"""A live caption is the best of as many candidates as this machine has time for; a file's never.

The clock is the generator's: a step takes what the test says.
"""

from types import SimpleNamespace

import pytest

from streammem.captioning import scheduler
from streammem.captioning.scheduler import LIVE_CAPTION_S
from streammem.captioning.shared import share_model
from streammem.engine.session import Session
from streammem.engine.session_config import SessionConfig
from streammem.engine.watch import watch
from streammem.engine.watch_options import WatchOptions
from streammem.models.backbones.language import GenerationConfig
from streammem.models.caption_scores import Reranker
from streammem.types import Caption, Stats
from streammem.video import VideoSource
from tests.tiny import film, talkative_language, tiny_model

FILM = film(*((c, 5) for c in ("red", "blue", "green", "white") * 2))
TOKENS = 21
STATS = WatchOptions(stats_s=1e9)


class Machine:
    """A language model whose steps take a given time on a clock of its own.

    Args:
        step_s: seconds of a step of so many candidates.
        read_s: seconds of reading a prompt.
        busy: steps, counted from the beginning, that take a minute more.
    """

    def __init__(self, step_s, read_s=0.0, busy=()):
        self.step_s, self.read_s, self.busy = step_s, read_s, busy
        self.now, self.num_steps, self.counts = 0.0, 0, []
        self.language = talkative_language()

    def __getattr__(self, name):
        return getattr(self.language, name)

    def replies(self, prompts, config, count=1):
        self.counts.append((config.max_new_tokens, count))
        took_s = self.read_s
        for replies in self.language.replies(prompts, config, count):
            self.now += took_s + 60 * (self.num_steps in self.busy)
            self.num_steps += 1
            took_s = self.step_s(count)
            yield replies

    @property
    def captions(self):
        """Candidates of each batch of captions; what is measured has fewer tokens."""
        return [count for tokens, count in self.counts if tokens == TOKENS]


class Camera(VideoSource):
    """A live source that gives frames without waiting."""

    live = True

    def _frames(self):
        yield from FILM


@pytest.fixture
def watched(monkeypatch):
    """Watch on a machine; give the captions' texts and the last counters."""

    def watched(machine, source, *, shared=False, **options):
        clock = SimpleNamespace(monotonic=lambda: machine.now, thread_time=lambda: machine.now)
        monkeypatch.setattr(scheduler, "time", clock)
        model = tiny_model(open_language=lambda: machine, reranker=Reranker((1.0, 0.1), 8))
        decoding = GenerationConfig(max_new_tokens=TOKENS)
        config = SessionConfig(caption=decoding, min_confidence=0.0, **options)
        if not shared:
            events = list(watch(Session(model, config), source, STATS))
        else:
            model, common = share_model(model)
            events = list(watch(Session(model, config), source, STATS, scheduler=common))
            common.close()
        (stats,) = (event for event in events if isinstance(event, Stats))
        return [event.text for event in events if isinstance(event, Caption)], stats

    return watched


def linear(base_s, each_s):
    return lambda count: base_s + each_s * count


@pytest.mark.parametrize(
    ("step_s", "read_s", "expected"),
    [
        (linear(0, 0), 0.0, 8),
        (linear(0, LIVE_CAPTION_S / 8 / 20), 0.0, 8),  # it fits exactly
        (linear(0, LIVE_CAPTION_S / 7 / 20), 0.0, 4),
        (linear(0, LIVE_CAPTION_S / 8 / 20), 0.1, 4),  # the prompt counts too
        (linear(0.05, 0.03), 0.0, 2),
        (linear(1, 1), 5.0, 1),  # not even one fits
    ],
)
@pytest.mark.parametrize("shared", [False, True])
def test_the_most_candidates_are_taken_with_which_a_live_caption_fits(
    watched, step_s, read_s, expected, shared
):
    machine = Machine(step_s, read_s)
    texts, stats = watched(machine, Camera("camera"), shared=shared)
    assert stats.candidates == expected
    assert texts and set(machine.captions) == {expected}


@pytest.mark.parametrize("step_s", [linear(0, 0), linear(1, 1)])
def test_a_number_that_is_asked_for_holds_and_nothing_is_measured(watched, step_s):
    machine = Machine(step_s)
    _, stats = watched(machine, Camera("camera"), candidates=8)
    assert stats.candidates == 8 and set(machine.captions) == {8}
    assert {tokens for tokens, _ in machine.counts} == {1, TOKENS}


def test_the_words_of_a_file_do_not_depend_on_the_machine(watched):
    fast, slow = Machine(linear(0, 0)), Machine(linear(1, 1), 5.0)
    (texts, first), (same, second) = watched(fast, FILM), watched(slow, FILM)
    assert texts == same and len(set(texts)) > 2
    assert first.candidates == second.candidates == 8
    assert set(fast.captions) == set(slow.captions) == {8}


def test_a_machine_that_slows_down_later_changes_nothing(watched):
    machine = Machine(lambda count: 0.0 if not machine.captions else 60.0)
    _, stats = watched(machine, Camera("camera"))
    assert stats.candidates == 8 and set(machine.captions) == {8}


def test_a_step_during_which_the_machine_was_busy_does_not_count(watched):
    machine = Machine(linear(0, 0.001), busy=(4,))  # the first is of the token that opens it
    _, stats = watched(machine, Camera("camera"))
    assert stats.candidates == 8


def test_a_model_that_could_not_be_measured_takes_its_own_number(watched):
    class Faulty(Machine):
        def replies(self, prompts, config, count=1):
            if config.max_new_tokens == 1:
                raise MemoryError
            yield from super().replies(prompts, config, count)

    machine = Faulty(linear(0, 0))
    texts, stats = watched(machine, Camera("camera"))
    assert texts and stats.candidates == 8


def test_what_was_chosen_is_logged(watched, caplog):
    caplog.set_level("INFO")
    watched(Machine(linear(0, 0.03)), Camera("camera"))
    (line,) = (line for line in caplog.messages if "candidates" in line)
    assert "best of 4 candidates (8 by default)" in line and "2.40 s of 2.50 s" in line


def test_the_machine_is_measured_once_for_all_cameras_of_a_process(monkeypatch):
    machine = Machine(linear(0, 0.03))
    clock = SimpleNamespace(monotonic=lambda: machine.now, thread_time=lambda: machine.now)
    monkeypatch.setattr(scheduler, "time", clock)
    model, common = share_model(
        tiny_model(open_language=lambda: machine, reranker=Reranker((1.0, 0.1), 8))
    )
    config = SessionConfig(caption=GenerationConfig(max_new_tokens=TOKENS), min_confidence=0.0)
    counters, measured = [], []
    for name in ("front", "back"):
        events = watch(Session(model, config), Camera(name), STATS, scheduler=common)
        counters += [event.candidates for event in events if isinstance(event, Stats)]
        measured.append([count for tokens, count in machine.counts if tokens != TOKENS])
    common.close()
    assert counters == [4, 4]
    assert measured[0] == measured[1] == [1, 8, 4]  # the token that opens it, then what was tried
