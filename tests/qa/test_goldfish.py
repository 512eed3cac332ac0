"""Goldfish's way to answer: the nearest documents, their clips' text, with and without a look."""

import numpy as np
import pytest

from streammem.engine.session import Session
from streammem.engine.session_config import SessionConfig
from streammem.errors import ConfigError
from streammem.models.protocols import EvidenceItem
from streammem.qa.goldfish import as_text, latin_only, nearest_documents, within_limit
from streammem.types import Note
from tests.memory.entries import make
from tests.sessions import SHORT, told
from tests.tiny import film

FILM = film(("red", 8), ("blue", 8), ("green", 8), ("white", 8))


def unit(*values):
    row = np.array(values, np.float32)
    return (row / np.linalg.norm(row))[None]


def test_documents_are_chosen_and_not_clips():
    """Both documents of one clip may be among three; then two clips are read."""
    none = np.zeros((0, 3), np.float32)
    rows = [
        make(0, unit(1, 1, 1), caption_keys=unit(1, 0, 0.1), note_keys=unit(1, 0.2, 0)),
        make(1, unit(1, 1, 1), caption_keys=unit(0, 1, 0), note_keys=none),
        make(2, unit(1, 1, 1), caption_keys=unit(0.5, 1, 0), note_keys=unit(0, 0, 1)),
        make(3, unit(1, 1, 1), caption_keys=none, note_keys=none),
    ]
    key = unit(1, 0, 0)[0]
    assert [r.segment for r in nearest_documents(rows, key, 2)] == [0]
    assert [r.segment for r in nearest_documents(rows, key, 3)] == [0, 2]
    assert [r.segment for r in nearest_documents(rows, key, 99)] == [0, 1, 2]
    assert nearest_documents([], key, 3) == []


def test_text_has_nothing_to_see_and_ends_at_ten_thousand_words():
    item = EvidenceItem(0, 1, None, "A dog.", (np.zeros((2, 2, 3), np.uint8),), "cut")
    notes = (Note(0, 1, "Good"), Note(1, 2, "morning."))
    text = as_text(item, notes, "It barks.")
    assert (text.caption, text.speech, text.keyframes) == ("A dog.\nIt barks.", "Good morning.", ())
    assert as_text(item, ()).caption == "A dog." and as_text(item, ()).speech is None
    long = as_text(item._replace(caption="w " * 9_998 + "w"), notes)
    kept = within_limit([long, text])
    assert [(len(i.caption.split()), i.speech) for i in kept] == [(9_999, "Good")]


@pytest.mark.parametrize("context", ["goldfish", "goldfish-again"])
def test_an_answer_is_read_from_text_after_each_clip_was_asked_or_not(model, monkeypatch, context):
    session = Session(
        model, SessionConfig(answer=SHORT, caption=SHORT, context=context, passages=2)
    )
    told(session, FILM)
    session.add_notes(1, (Note(4.0, 5.0, "blue words"),))
    asked, plain = [], type(model).answer_prompt
    monkeypatch.setattr(
        type(model),
        "answer_prompt",
        lambda self, items, question: asked.append(list(items)) or plain(self, items, question),
    )
    answer = session.ask("How often is blue words seen?")
    last, before = asked[-1], asked[:-1]
    rows = [session.memory.get(item.segment) for item in answer.evidence]
    assert answer.method == "model" and all(item.tokens is None for item in last)
    assert {row.segment for row in rows} == {e.segment for e in answer.evidence} and rows
    assert 1 <= len(last) <= 2 and 1 in {row.segment for row in rows}
    assert "blue words" in {item.speech for item in last}
    if context == "goldfish":
        assert before == []
        assert [item.caption for item in last] == [
            row.caption for row in sorted(rows, key=lambda row: row.start)
        ]
    else:  # one look at each, with its tokens, before the text is read
        assert [len(items) for items in before] == [1] * len(last)
        assert all(items[0].tokens is not None for items in before)
        assert all("\n" in item.caption for item in last)


@pytest.mark.parametrize("letters", ["latin", pytest.param("all", marks=pytest.mark.heavy)])
def test_text_in_other_scripts_is_read_unless_the_published_rule_is_asked_for(
    model, monkeypatch, letters
):
    config = SessionConfig(answer=SHORT, context="goldfish", letters=letters, passages=9)
    session = Session(model, config)
    told(session, FILM[:16])
    session.add_notes(1, (Note(4.0, 5.0, "Ein Käfer, 猫;  it's 2!"), Note(5.0, 6.0, "Привет")))
    asked, plain = [], type(model).answer_prompt
    monkeypatch.setattr(
        type(model),
        "answer_prompt",
        lambda self, items, question: asked.append(list(items)) or plain(self, items, question),
    )
    session.ask("What is red?")
    heard = {item.speech for item in asked[-1]} - {None}
    assert heard == {{"all": "Ein Käfer, 猫;  it's 2! Привет", "latin": "Ein Kfer it's 2"}[letters]}


def test_text_of_other_scripts_alone_is_nothing_by_the_published_rule():
    item = latin_only(EvidenceItem(0, 1, None, "猫", speech=" Привет! "))
    assert item.caption is item.speech is None and within_limit([item]) == []
    with pytest.raises(ConfigError, match="letters='greek': give all or latin"):
        SessionConfig(letters="greek")


def test_what_has_no_caption_yet_gets_one_because_it_is_a_document(model):
    session = Session(model, SessionConfig(answer=SHORT, caption=SHORT, context="goldfish"))
    for frame in FILM:
        session.push(frame)
    session.flush()
    assert not any(row.caption for row in session.memory.entries())
    session.ask("What is red?")
    assert all(row.caption for row in session.memory.entries())
