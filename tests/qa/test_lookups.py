"""The functions of a memory: what they give, and that nothing a model writes can break them."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streammem.engine.session import Session
from streammem.engine.session_config import SessionConfig
from streammem.models.protocols import ToolCall
from streammem.models.tiny.model import VideoModel
from streammem.models.tiny.questions import QuestionReading
from streammem.qa.lookups import LOOKUPS, MAX_FRAMES, TOOLS
from streammem.qa.steps import StepLimits, answer_in_steps
from streammem.types import Answer
from tests.command_line import record
from tests.looking import Scripted, calling, model_of, named, pictures_in
from tests.sessions import as_kind
from tests.tiny import COLOURS, film, moving_square, tiny_model

FILM = (("red", 9), ("blue", 7), ("green", 12), ("red", 8), ("white", 6))
SPANS = {0: (0, 4.5), 1: (4.5, 8), 2: (8, 14), 3: (14, 18), 4: (18, 21)}


class Reader(VideoModel):
    """Gives a colour's name that colour's key, and reads ``operator: anchor``."""

    def read_question(self, question: str) -> QuestionReading:
        operator, _, anchor = question.rpartition(": ")
        return QuestionReading(operator or "describe", anchor)

    def sentence_keys(self, sentences):
        known = (COLOURS.keys() & {sentence} for sentence in sentences)
        return np.stack(
            [
                self.perceive(moving_square(sentence, 0)).key
                if has
                else VideoModel.sentence_keys(self, [sentence])[0]
                for sentence, has in zip(sentences, known, strict=True)
            ]
        )


@pytest.fixture(scope="module")
def reader():
    return as_kind(Reader, tiny_model())


@pytest.fixture
def watched(reader, monkeypatch):
    """Make a session that has seen the film; a colour is seen where the picture is nearly that."""
    keys = {name: reader.perceive(moving_square(name, 0)).key for name in COLOURS}
    least = (1 + max(float(keys[a] @ keys[b]) for a in keys for b in keys if a < b)) / 2
    probability = "streammem.memory.retrieval.Scale.probability"
    monkeypatch.setattr(probability, lambda scale, cosines: 1.0 * (np.asarray(cosines) > least))

    def make(generator=None, *, frames=None, **options):
        session = Session(
            model_of(generator or Scripted(), reader), SessionConfig(**options), source="a.mp4"
        )
        for frame in frames or film(*FILM):
            session.push(frame)
        session.flush()
        return session

    return make


def ids(looked):
    assert not looked.failed, looked.text
    return list(looked.segments)


def test_each_function_gives_what_it_says(watched):
    lookups = watched().lookups()
    assert set(ids(lookups.call("search", {"text": "red"}))[:2]) == {0, 3}
    assert ids(lookups.call("at", {"time": "0:10"})) == [2]
    assert ids(lookups.call("at", {"time": "10"})) == ids(lookups.call("at", {"time": 10})) == [2]
    assert ids(lookups.call("at", {"time": "between 0:05 and 0:10"})) == [1, 2]
    assert ids(lookups.call("before", {"segment": 3})) == [0, 1, 2]
    assert ids(lookups.call("after", {"segment": "3"})) == [4]
    assert lookups.call("after", {"segment": 4}).text == "no scene"
    counted = lookups.call("count", {"text": "red"})
    assert counted.text.splitlines()[0] == "2 times, 8.5 s in all" and ids(counted) == [0, 3]
    assert lookups.call("count", {"text": "black"}).text == "0 times"
    (picture,) = lookups.call("look", {"segment": 1}).pictures
    assert named(picture.pixels) == "blue"


def test_a_time_without_scenes_gives_the_nearest(watched):
    looked = watched().lookups().call("at", {"time": "1:00:00"})
    assert ids(looked) == [4] and looked.text.startswith("nothing was seen then")


def test_scenes_outside_the_part_that_is_asked_about_are_neither_found_nor_shown(watched):
    lookups = watched().lookups(between=(8.0, 14.0))
    for name, arguments in (
        ("search", {"text": "red"}), ("at", {"time": "0"}), ("count", {"text": "red"}),
    ):  # fmt: skip
        assert set(lookups.call(name, arguments).segments) <= {2}
    for name in ("look", "before", "after"):
        assert lookups.call(name, {"segment": 0}).failed
        assert set(lookups.call(name, {"segment": 2}).segments) <= {2}


def test_pictures_that_were_never_stored_are_read_from_the_file(watched, tmp_path):
    path = record(tmp_path / "film.mp4", (("red", 3), ("blue", 4)))
    frames = film(("red", 6), ("blue", 8))
    session = watched(frames=frames)
    session.answerer.file_of = lambda entry: path
    looked = session.lookups().call("look", {"segment": 1, "frames": 4})
    times = [picture.time for picture in looked.pictures]
    assert times == [3.5, 4.5, 5.5, 6.5]  # the film has eight frames a second
    assert all(named(p.pixels) == "blue" and p.pixels.shape == (48, 64, 3) for p in looked.pictures)
    path.write_bytes(b"no video any more")
    kept = session.lookups().call("look", {"segment": 1, "frames": 4})
    assert len(kept.pictures) == 1 and "cannot be read" in kept.text


ANYTHING = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(st.characters(), max_size=400),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)
NAMES = st.sampled_from(
    [*(each.name for each in LOOKUPS), "call", "memory", "_row", "__init__", ""]
)


@settings(max_examples=60)
@given(
    name=NAMES | st.text(max_size=20),
    arguments=st.text(max_size=20)
    | st.dictionaries(
        st.sampled_from(["text", "time", "segment", "frames", "self"]) | st.text(), ANYTHING
    ),
)
def test_nothing_that_a_model_writes_raises(name, arguments):
    session = _SEEN.setdefault("session", _seen())
    looked = session.lookups().call(name, arguments)
    assert looked.text and len(looked.pictures) <= MAX_FRAMES
    assert all(session.memory.get(segment) is not None for segment in looked.segments)
    if looked.failed:
        assert looked.text.startswith("error: ") and len(looked.text) < 400
        assert not looked.segments and not looked.pictures


_SEEN: dict = {}


def _seen():
    session = Session(model_of(Scripted()))
    for frame in film(("red", 6), ("blue", 6)):
        session.push(frame)
    session.flush()
    return session


def test_a_description_is_a_schema_that_a_server_takes():
    for tool, lookup in zip(TOOLS, LOOKUPS, strict=True):
        schema = json.loads(json.dumps(tool.parameters))
        assert (tool.name, tool.help) == (lookup.name, lookup.help)
        assert schema["type"] == "object" and set(schema["required"]) <= set(schema["properties"])
        for argument in schema["properties"].values():
            assert argument["type"] in ("string", "integer") and argument["description"]


# -- steps --


def test_a_model_looks_things_up_and_the_answer_keeps_every_step(watched):
    script = [
        calling("search", text="white"),
        calling("before", segment=4),
        calling("look", segment=2, frames=1),
    ]
    generator = Scripted(pictures=2, script=script)
    session = watched(generator, passages=1, steps=8)
    pieces = []
    answer = session.ask("What is it?", pieces.append)
    assert isinstance(answer, Answer) and answer.method == "model"
    assert [step.call for step in answer.steps] == ["search", "before", "look"]
    assert answer.steps[1].segments == (0, 1, 2, 3) and answer.steps[2].pictures == 1
    assert "green" in answer.text.split() and "".join(pieces) == answer.text
    assert not any(step.failed for step in answer.steps)
    # What a step has shown is evidence, and every row stands in the memory.
    shown = {segment for step in answer.steps for segment in step.segments}
    assert shown <= {item.segment for item in answer.evidence}
    for item in answer.evidence:
        assert (item.start, item.end) == SPANS[item.segment]


def test_equal_sessions_take_equal_steps(watched):
    script = [calling("search", text="red"), calling("look", segment=3)]
    first, second = (watched(Scripted(script=script), steps=5).ask("What is it?") for _ in range(2))
    assert first == second


@pytest.mark.parametrize("steps", [2, 3, 9])
@pytest.mark.parametrize("pictures", [0, 1, 3])
def test_a_model_that_never_stops_looking_is_stopped(watched, steps, pictures):
    def look(prompt, turns):
        return calling("look", segment=len(turns) % 5, frames=len(turns) + 1)

    generator = Scripted(pictures=pictures, script=[look] * 50)
    answer = watched(generator, steps=steps).ask("What is it?")
    assert len(answer.steps) == steps - 1  # the last time no tool is offered
    assert [bool(tools) for tools in generator.offered] == [True] * (steps - 1) + [False]
    for prompt, turns in generator.asked:
        shown = pictures_in([*prompt, *(part for turn in turns for part in turn.result)])
        assert len(shown) <= pictures
        for turn in turns:
            for before, part in zip(["", *turn.result], turn.result, strict=False):
                assert isinstance(part, str) or before.startswith("[")  # its time
    assert answer.text  # it was asked once more, without tools


def test_a_model_that_takes_too_long_must_answer(watched):
    clock = iter(range(0, 10_000, 40))
    generator = Scripted(script=[calling("count", text=f"{i}") for i in range(30)])
    session = watched(generator, steps=30)
    replied = answer_in_steps(
        generator, [], "What?", session.lookups(), generator.decoding,
        StepLimits(30, seconds=100), monotonic=lambda: next(clock),
    )  # fmt: skip
    assert len(replied.steps) == 2


def test_what_was_looked_up_already_is_not_looked_up_again(watched):
    generator = Scripted(script=[calling("search", text="red")] * 3)
    answer = watched(generator, steps=9).ask("What is it?")
    assert [step.failed for step in answer.steps] == [False, True, True]


def test_a_call_that_cannot_be_meant_goes_back_to_the_model_as_text(watched):
    script = [
        ToolCall("delete", {"all": True}),
        ToolCall("look", "{segment: 1"),
        calling("look", segment=77),
        calling("look", segment=1, frames=10**9),
        calling("at", time="tomorrow"),
    ]
    generator = Scripted(script=script)
    answer = watched(generator, steps=9).ask("What is it?")
    assert [step.failed for step in answer.steps] == [True] * 5
    texts = [turn.result[0] for turn in generator.asked[-1][1]]
    assert all(text.startswith("error: ") for text in texts)
    assert "search, at, before, after, count, look" in texts[0]


def test_steps_of_a_model_without_tools_are_refused_before_anything_is_seen(reader):
    with pytest.raises(Exception, match="cannot call tools") as raised:
        Session(model_of(Scripted(tools=False), reader), SessionConfig(steps=3))
    assert type(raised.value).__name__ == "ConfigError"
    Session(model_of(Scripted(tools=False), reader), SessionConfig(steps=1))


def test_what_is_computed_is_handed_to_a_model_that_looks(watched):
    generator = Scripted()
    answer = watched(generator, steps=2).ask("how often: red")
    question = generator.asked[0][0][-1]
    assert "2 times: 00:00.0-00:04.5, 00:14.0-00:18.0" in question
    assert answer.method == "model" and answer.seen


# -- not seen, checked --


@pytest.fixture
def blind(watched, monkeypatch):
    """Sessions whose keys see nothing."""
    monkeypatch.setattr(
        "streammem.memory.retrieval.Scale.probability",
        lambda scale, cosines: 0.1 * np.ones(len(np.asarray(cosines))),
    )
    return watched


def test_a_model_that_looks_overrules_keys_that_have_not_seen(blind):
    plain = blind(passages=5).ask("when: green")
    assert (plain.seen, plain.text, plain.decided_by) == (False, "not seen", None)
    answer = blind(passages=5, verify=True).ask("when: green")
    assert (answer.seen, answer.text) == (True, "00:08.0-00:14.0")
    assert (answer.method, answer.decided_by) == ("computed", "model")
    assert [item.segment for item in answer.evidence] == [2]


@pytest.mark.parametrize("context", ["captions", "goldfish", "goldfish-again"])
def test_a_model_that_answers_from_text_looks_to_check(blind, context):
    session = blind(passages=5, verify=True, context=context)
    for colour, seen in (("green", True), ("black", False)):
        for operator in ("when", "describe"):
            answer = session.ask(f"{operator}: {colour}")
            assert (answer.seen, answer.decided_by) == (seen, "model")


@pytest.mark.parametrize("question", ["when: black", "how often: black", "describe: black"])
def test_a_model_that_looks_confirms_what_was_not_seen(blind, question):
    answer = blind(passages=5, verify=True).ask(question)
    assert (answer.seen, answer.decided_by) == (False, "model") and answer.evidence


def test_what_the_keys_have_seen_is_not_asked_again(watched):
    generator = Scripted()
    answer = watched(generator, verify=True).ask("when: green")
    assert answer.seen and answer.decided_by is None and not generator.prompts


def test_a_reply_that_is_neither_leaves_it_to_the_keys(blind, monkeypatch):
    monkeypatch.setattr(Scripted, "_words", lambda self, parts: "I cannot tell.")
    answer = blind(verify=True).ask("when: green")
    assert (answer.seen, answer.decided_by) == (False, "keys")


def test_verify_of_a_model_that_reads_no_pictures_is_refused(reader):
    with pytest.raises(Exception, match="reads no pictures"):
        Session(model_of(Scripted(pictures=0), reader), SessionConfig(verify=True))
