"""Teaching a session a name: the keys, the picture of a moment, people, and what a name changes."""

import numpy as np
import pytest

from streammem.engine.session import Session
from streammem.errors import ConfigError
from streammem.memory.named import NamedThing
from streammem.output.render import to_json
from streammem.qa import teaching
from streammem.qa.answerer import Answerer
from tests.sessions import session_of
from tests.tiny import film, moving_square, tiny_model

FILM = (("red", 6), ("blue", 6), ("red", 6))


@pytest.fixture(scope="module")
def model():
    return tiny_model()


@pytest.fixture(autouse=True)
def no_people(monkeypatch):
    monkeypatch.setattr(teaching, "PEOPLE", ())


@pytest.fixture
def seen(model, monkeypatch):
    """A session in which blue is told from red, whatever the tiny model's background is like."""
    key = {name: model.perceiver.perceive(moving_square(name, 0)).key for name in ("red", "blue")}
    between = (1 + float(key["red"] @ key["blue"])) / 2

    def of(taught, background):
        keys = np.stack([picture.key for picture in taught.pictures])
        return NamedThing(taught.name, keys, np.full(len(keys), between))

    monkeypatch.setattr(NamedThing, "of", of)
    return shown(session_of(model))


def shown(session):
    for frame in film(*FILM):
        session.push(frame)
    session.flush()
    return session


def spans(items):
    return [(item.start, item.end) for item in items]


def test_a_taught_thing_is_found_named_and_forgotten(seen):
    seen.teach("my cup", [moving_square("blue", 0)])
    assert seen.names == ("my cup",)
    best, *others = seen.find("my cup", 3)
    assert (best.start, best.end, best.names) == (3.0, 6.0, ("my cup",)) and best.score >= 0.5
    assert all(not other.names and other.score < 0.5 for other in others)
    assert to_json(best)["names"] == ["my cup"] and "[my cup]" in str(best)
    assert "names" not in to_json(others[0])
    answer = seen.ask("Where did I put my cup?")
    assert answer.seen and answer.text.startswith("last seen 00:03.0-00:06.0, 3 s before the end")
    assert answer.evidence[0].names == ("my cup",)
    seen.forget_name("my cup")
    assert seen.names == () and not seen.find("my cup", 1)[0].names
    with pytest.raises(KeyError):
        seen.forget_name("my cup")


def test_a_picture_of_a_taught_thing_does_not_show_what_was_done_to_it(seen, monkeypatch):
    seen.teach("my cup", [moving_square("blue", 0)])
    scored, names = Answerer._scores, []

    def noted(answerer, query, window):
        names.append(tuple(thing.name for thing in query.things))
        scores = scored(answerer, query, window)
        return scores if query.things else dict.fromkeys(scores, 0.0)

    monkeypatch.setattr(Answerer, "_scores", noted)
    answer = seen.ask("Did I wash my cup?")
    assert answer.text.startswith("not seen: wash my cup; my cup: last seen 00:03.0-00:06.0, ")
    assert not answer.seen and answer.evidence[0].names == ("my cup",)
    assert names[:2] == [(), ("my cup",)]  # of the action, of the thing


def test_a_thing_is_taught_from_a_moment_and_from_a_part_of_its_picture(seen):
    whole = seen.teach("my cup", at=4.0)
    part = seen.teach("my plate", at=4.0, box=(0.25, 0.0, 0.5, 1.0))
    assert whole.pictures[0].segment == 1 and seen.find("my cup", 1)[0].segment == 1
    pictures = [teaching.decode_keyframe(each.pictures[0].jpeg) for each in (whole, part)]
    assert pictures[1].shape == (pictures[0].shape[0], pictures[0].shape[1] // 2, 3)
    for box in ((0.5, 0, 0.6, 1), (0, 0, 0, 1), (-0.1, 0, 0.5, 1), (0, np.nan, 1, 1)):
        with pytest.raises(ConfigError, match="shares of the picture"):
            seen.teach("my cup", at=4.0, box=box)
    with pytest.raises(ConfigError, match="nothing was seen at"):
        seen.teach("my cup", at=99.0)
    with pytest.raises(ConfigError, match="nothing was seen at"):
        seen.teach("my cup", at=4.0, source="elsewhere")
    with pytest.raises(ConfigError, match="give a picture"):
        seen.teach("my cup")
    with pytest.raises(ConfigError, match="at least 16 pixels"):
        seen.teach("my cup", [np.zeros((8, 40, 3), np.uint8)])


def test_people_are_taught_only_where_that_is_asked_for(seen, monkeypatch):
    monkeypatch.setattr(teaching, "looks_like_people", lambda model, key: True)
    with pytest.raises(ConfigError, match="--person"):
        seen.teach("Anna", [moving_square("blue", 0)])
    assert seen.names == ()
    assert seen.teach("Anna", [moving_square("blue", 0)], person=True).is_person


def test_nothing_is_named_that_was_not_taught(seen):
    assert all(not moment.names for moment in seen.find("my cup", 9))


def test_a_reindexed_memory_compares_pictures_by_its_new_keys(model, tmp_path, monkeypatch):
    with shown(Session(model, memory=tmp_path / "m")) as session:
        session.teach("my cup", [moving_square("blue", 0)])
        stale = session.memory.taught()[0].pictures[0]
        wrong = stale._replace(key=-stale.key, fingerprint="another model")
        session.memory.teach(
            teaching.Taught("my cup", False, (wrong,)),
            renew=True,
        )
    for read_only in (True, False, True):
        with Session(model, memory=tmp_path / "m", read_only=read_only) as session:
            (picture,) = session.memory.taught()[0].pictures
            assert picture.fingerprint == model.fingerprint
            assert picture.key @ stale.key > 0.95  # made anew, of a JPEG
