"""Named things: taught with pictures, told from their like, forgotten without a trace."""

import numpy as np
import pytest

from streammem.errors import ConfigError, StoreError
from streammem.memory.entry import Now
from streammem.memory.memory import Memory
from streammem.memory.named import (
    BEYOND_CHANCE,
    LEAST_COSINE,
    MAX_NAMES,
    MAX_PICTURES,
    NamedThing,
    Taught,
    TaughtPicture,
    named_in,
    with_pictures,
)
from streammem.memory.retrieval import SEEN, Query, retrieve
from streammem.memory.store import Store
from streammem.memory.upkeep import forget
from streammem.types import TimeSpan
from tests.memory.entries import DIM, TOKENS, make, near, unit

KEY = unit(1, seed=99)[0]
BACKGROUND = unit(40, seed=5)
SECRET = b"a picture that is a secret " * 9


def taught(name="my cup", key=KEY, segment=None, is_person=False, jpeg=SECRET):
    return Taught(name, is_person, (TaughtPicture(jpeg, key, "model", segment),))


def on_disk(path, mode="rw"):
    return Memory.open(path, "model", key_dim=DIM, token_shape=TOKENS, max_segments=50, mode=mode)


def filled(path=None):
    import torch

    memory = on_disk(path)
    for segment, cosine in enumerate((0.1, 0.99, 0.5)):
        memory.append(make(segment, near(KEY, cosine, seed=segment)[None]), torch.zeros(1))
    return memory


def test_a_row_shows_a_thing_from_its_level_on():
    thing = NamedThing.of(taught(), BACKGROUND)
    (level,) = thing.levels
    assert level == max(LEAST_COSINE, (BACKGROUND @ KEY).max() + BEYOND_CHANCE)
    assert thing.excess(make(0, near(KEY, level + 0.01)[None])) >= 0
    assert thing.excess(make(0, near(KEY, level - 0.01)[None])) < 0
    # A picture that unrelated ones are like is held against a higher level.
    common = NamedThing.of(taught(), np.stack([near(KEY, 0.95)]))
    assert common.levels[0] == pytest.approx(0.95 + BEYOND_CHANCE, abs=1e-5)


def test_any_of_its_pictures_may_be_the_one_that_a_row_is_like():
    other = unit(1, seed=3)[0]
    thing = NamedThing.of(with_pictures(taught(), taught(key=other)), BACKGROUND)
    assert thing.excess(make(0, np.stack([unit(1, seed=8)[0], other]))) >= 0
    assert thing.excess(make(0, unit(1, seed=8))) < 0


def test_names_are_found_word_for_word_and_the_longest_hides_those_within():
    things = [NamedThing.of(taught(name), BACKGROUND) for name in ("cup", "my red cup", "Rex")]

    def found(text):
        return [thing.name for thing in named_in(things, text)]

    assert found("Where is MY RED CUP?") == ["my red cup"]
    assert found("the cup beside rex") == ["cup", "Rex"]
    assert found("cups, cupboards, a T-rexes") == []


@pytest.mark.parametrize("name", ["", " ", "it", "the", "a\nb", "x" * 61])
def test_a_name_that_cannot_be_asked_for_is_refused(name):
    with pytest.raises(ConfigError, match="give"):
        taught(name)


def test_a_query_that_names_a_thing_finds_it_and_nothing_else(tmp_path):
    with_cup = filled(tmp_path / "m")
    # The words "cup" alone would find any cup, by its key and by a caption that names one.
    text = near(unit(1, seed=2)[0], 0.9, seed=4)
    with_cup.set_caption(2, "A cup stands on a table.", text)
    query = Query(text, Now(), BACKGROUND @ text, words=frozenset({"cup"}), num_keys=3)
    assert [hit.entry.segment for hit in retrieve(with_cup, query) if hit.seen] == [2]
    named = query._replace(things=(NamedThing.of(taught(), BACKGROUND),), heard=False)
    for count in (None, 1):
        hits = retrieve(with_cup, named, k=count)
        assert [hit.entry.segment for hit in hits if hit.seen] == [1]
        assert hits[0].entry.segment == 1 and hits[0].score >= SEEN
    with_cup.close()


def test_what_was_taught_lasts_and_further_pictures_are_added(tmp_path):
    memory = filled(tmp_path / "m")
    memory.teach(taught("Rex"))
    memory.teach(taught("my cup"))
    memory.teach(taught("MY CUP", key=unit(1, seed=3)[0]))
    memory.close()
    memory = on_disk(tmp_path / "m", "r")
    assert [(each.name, len(each.pictures)) for each in memory.taught()] == [
        ("my cup", 2), ("Rex", 1),
    ]  # fmt: skip
    assert memory.taught()[0].pictures[0].jpeg == SECRET
    np.testing.assert_array_equal(memory.taught()[0].pictures[0].key, KEY)
    memory.close()


def test_what_is_taught_is_bounded(tmp_path):
    whole = taught()
    for number in range(MAX_PICTURES + 3):
        whole = with_pictures(whole, taught(jpeg=b"%d" % number))
    assert len(whole.pictures) == MAX_PICTURES
    memory = filled(tmp_path / "m")
    for number in range(MAX_NAMES):
        memory.teach(taught(f"cup {number}"))
    with pytest.raises(ConfigError, match="forget one first"):
        memory.teach(taught("one more cup"))
    memory.teach(taught("cup 0"))
    memory.close()


def test_a_person_and_a_thing_are_not_mixed(tmp_path):
    memory = filled(tmp_path / "m")
    memory.teach(taught("Anna", is_person=True))
    with pytest.raises(ConfigError, match="was taught as a person"):
        memory.teach(taught("Anna"))
    memory.close()


def bytes_of(path):
    return b"".join(file.read_bytes() for file in path.rglob("*") if file.is_file())


def test_a_forgotten_name_leaves_no_byte_of_its_picture(tmp_path):
    memory = filled(tmp_path / "m")
    memory.teach(taught())
    assert SECRET in bytes_of(tmp_path / "m")
    memory.forget_name("My Cup")
    assert memory.taught() == ()
    assert SECRET not in bytes_of(tmp_path / "m")  # at once, and not when it is closed
    memory.close()
    assert SECRET not in bytes_of(tmp_path / "m")
    with pytest.raises(KeyError):
        filled(tmp_path / "n").forget_name("my cup")


def test_forgetting_a_span_forgets_the_pictures_that_were_cut_from_it(tmp_path):
    memory = filled(tmp_path / "m")
    memory.teach(taught("my cup", segment=1))
    memory.teach(taught("Rex", segment=2))
    memory.teach(taught("Bella"))
    memory.close()
    with Store.open(tmp_path / "m") as store:
        forget(store, TimeSpan(1.2, 1.5))
    memory = on_disk(tmp_path / "m")
    assert [each.name for each in memory.taught()] == ["Bella", "Rex"]
    memory.close()


def test_a_damaged_picture_is_reported(tmp_path):
    memory = filled(tmp_path / "m")
    memory.teach(taught())
    memory._store.database.query("UPDATE taught SET picture = x'00'")
    memory.close()
    with pytest.raises(StoreError, match="'my cup' is damaged"):
        on_disk(tmp_path / "m", "r")
