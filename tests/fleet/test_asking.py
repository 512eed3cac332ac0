"""Many memories give what one memory of all of it gives."""

import shutil

import pytest

from streammem.engine.session import Session
from streammem.engine.session_config import SessionConfig
from streammem.errors import ConfigError, StoreError
from streammem.fleet.asking import ask_all, find_all, open_all
from tests.fleet.test_index import clearly
from tests.qa.test_answerer import Reader
from tests.sessions import SHORT, as_kind, told
from tests.tiny import film

CONFIG = SessionConfig(answer=SHORT, caption=SHORT)
FILMS = {
    "a": (("red", 9), ("blue", 7)),
    "b": (("green", 12), ("white", 6)),
    "c": (("blue", 5), ("black", 6), ("green", 4)),
}


@pytest.fixture(scope="module")
def folder(model, tmp_path_factory):
    """Three memories in one folder."""
    folder = tmp_path_factory.mktemp("archive")
    for name, scenes in FILMS.items():
        with Session(model, CONFIG, memory=folder / name, source=name) as session:
            told(session, film(*scenes))
    (folder / ".unfinished-d").mkdir()
    (folder / ".unfinished-d" / "memory.json").write_text("{}")
    return folder


@pytest.fixture(scope="module")
def whole(model, folder):
    """One memory of the same three films, and its session."""
    with Session(model, CONFIG) as session:
        for name, scenes in FILMS.items():
            session.source = name
            told(session, film(*scenes))
            session.go_on(0.0, None)
        yield session


@pytest.mark.parametrize("query", ["red", "blue", "green", "something else"])
def test_moments_and_their_scores_are_those_of_one_memory_of_everything(
    model, folder, whole, query
):
    with open_all(folder, model, CONFIG) as memories:
        found = find_all(memories, query, 7)
    expected = whole.find(query, 7)
    assert [moment.rank for _, moment in found] == list(range(1, len(found) + 1))
    assert all(moment.source == name for name, moment in found)
    assert sorted((m.source, round(m.score, 5)) for _, m in found) == sorted(
        (m.source, round(m.score, 5)) for m in expected
    )


def test_a_question_is_encoded_once_for_all_memories(model, folder, monkeypatch):
    encoded, encode = [], type(model).sentence_keys

    def sentence_keys(self, sentences):
        encoded.extend(sentences)
        return encode(self, sentences)

    monkeypatch.setattr(type(model), "sentence_keys", sentence_keys)
    with open_all(folder, model, CONFIG) as memories:
        encoded.clear()
        first = find_all(memories, "red", 7)
        assert encoded == ["red"]
        assert find_all(memories, "red", 7) == first and encoded == ["red"]


def test_what_was_written_since_is_found_without_reading_a_memory_anew(model, folder, tmp_path):
    shutil.copytree(folder, tmp_path / "archive")
    writer = Session(model, CONFIG, memory=tmp_path / "archive" / "a", source="a")
    with writer, open_all(tmp_path / "archive", model, CONFIG) as memories:
        before = dict(memories.sessions)
        writer.go_on(0.0, None)
        told(writer, film(("white", 9), ("red", 4)))
        memories.refresh()
        assert memories.sessions == before  # the same sessions
        with open_all(tmp_path / "archive", model, CONFIG) as anew:
            assert find_all(memories, "white", 9) == find_all(anew, "white", 9)
            assert {n: s.next_segment for n, s in memories.sessions.items()} == {
                n: s.next_segment for n, s in anew.sessions.items()
            }
        # Another memory of the same name is another file.
        shutil.rmtree(tmp_path / "archive" / "b")
        shutil.copytree(folder / "c", tmp_path / "archive" / "b")
        memories.refresh()
        assert memories.sessions["b"] is not before["b"]
        assert len(memories.sessions["b"].memory) == len(memories.sessions["c"].memory)


def test_a_question_is_answered_from_where_its_thing_was_seen(model, folder, monkeypatch):
    reader = as_kind(Reader, model)
    monkeypatch.setattr("streammem.memory.retrieval.Scale.probability", clearly)
    with open_all(folder, reader, CONFIG) as memories:
        answers = ask_all(memories, "when: blue")
        assert {name: [e.start for e in a.evidence] for name, a in answers} == {
            "a": [4.5], "c": [0.0]
        }  # fmt: skip
        ((_, nearest),) = ask_all(memories, "when: black yesterday")
        assert not nearest.seen


def test_one_that_cannot_be_opened_is_named_and_the_others_are_asked(model, folder, tmp_path):
    shutil.copytree(folder, tmp_path / "archive")
    (tmp_path / "archive" / "b" / "memory.sqlite").write_bytes(b"damaged")
    with open_all(tmp_path / "archive", model, CONFIG) as memories:
        assert list(memories.failed) == ["b"] and list(memories.sessions) == ["a", "c"]
        assert find_all(memories, "red", 1)[0][0] == "a"
    for name in "ac":
        shutil.rmtree(tmp_path / "archive" / name)
    with (
        pytest.raises(StoreError, match="none can be opened"),
        open_all(tmp_path / "archive", model, CONFIG),
    ):
        pass
    shutil.rmtree(tmp_path / "archive" / "b")
    with (
        pytest.raises(ConfigError, match="holds no memories"),
        open_all(tmp_path / "archive", model, CONFIG),
    ):
        pass
