"""The planning adapter: what it reads, what it gives, its file."""

import copy
import json

import numpy as np
import pytest
import torch
from safetensors import safe_open

from streammem.errors import CheckpointError, ConfigError
from streammem.models.tiny.planning import (
    HISTORY,
    Action,
    ActionWords,
    PlanningAdapter,
    open_planning,
    planning_file,
    save_planning,
)

WORDS = ActionWords(
    {"take": ["take", "get", "pick-up"], "cut": ["cut", "slice"], "turn-on": ["turn-on"]},
    {"tap": ["tap", "tap:water"], "onion": ["onion"], "bottle:water": ["bottle:water"]},
)


@pytest.fixture
def adapter():
    torch.manual_seed(0)
    return PlanningAdapter(WORDS, dim=8, hidden=8).eval()


@pytest.mark.parametrize(
    ("text", "action"),
    [
        ("A man is cutting an onion.", Action(1, 1)),
        ("He slices onions on a board", Action(1, 1)),
        ("pick up the water bottle", Action(0, 2)),
        ("Getting the bottle of tap", Action(0, 0)),
        ("She turns on the water tap", Action(2, 0)),
        ("An onion is cut", None),  # no noun after the verb
        ("A dog runs", None),
    ],
)
def test_an_action_is_read_off_a_sentence(text, action):
    assert WORDS.read(text) == action


def test_names_are_written_as_people_say_them():
    assert WORDS.name(Action(2, 2)) == "turn on water bottle"


def test_chances_sum_to_one_and_rest_on_order_and_the_newest_actions_alone(adapter, monkeypatch):
    first, second = [Action(0, 0), Action(1, 1)], [Action(1, 1), Action(0, 0)]
    chances = adapter.next(first)
    assert chances.shape == (3, 3) and chances.sum() == pytest.approx(1, abs=1e-5)
    assert not np.allclose(chances, adapter.next(second))
    assert adapter.next([]).sum() == pytest.approx(1, abs=1e-5)
    read = list[int]()
    monkeypatch.setattr(
        adapter, "all_next", lambda actions: read.append(len(actions)) or torch.ones(1, 3, 3)
    )
    adapter.next(first * HISTORY)
    assert read == [HISTORY]


def test_what_comes_after_some_actions_does_not_rest_on_later_ones(adapter):
    actions = torch.tensor([[0, 0], [1, 1], [2, 2]])
    every = adapter.all_next(actions)
    assert torch.allclose(every[:3], adapter.all_next(actions[:2]), atol=1e-6)


def test_a_file_gives_the_adapter_back_with_its_words_and_terms(adapter, tmp_path):
    path = tmp_path / "a.safetensors"
    save_planning(adapter, path, "CC BY-NC 4.0")
    again = open_planning(path)
    assert again.words == WORDS
    np.testing.assert_allclose(again.next([Action(0, 1)]), adapter.next([Action(0, 1)]), atol=2e-3)
    save_planning(again, tmp_path / "b.safetensors", "CC BY-NC 4.0")
    assert (tmp_path / "b.safetensors").read_bytes() == path.read_bytes()


@pytest.mark.parametrize("spoil", [lambda b: b[:-9], lambda b: b"", lambda b: b"x" * 40])
def test_a_file_that_is_no_adapter_is_refused(adapter, tmp_path, spoil):
    path = tmp_path / "a.safetensors"
    save_planning(adapter, path, "terms")
    path.write_bytes(spoil(path.read_bytes()))
    with pytest.raises(CheckpointError, match=r"a\.safetensors"):
        open_planning(path)
    with pytest.raises(ConfigError, match="kitchen"):
        open_planning(tmp_path / "none")


def test_a_weight_of_an_adapter_that_is_no_finite_number_is_told(adapter, tmp_path):
    path = tmp_path / "a.safetensors"
    spoiled = copy.deepcopy(adapter)
    spoiled.verb_bias.data[1] = torch.nan
    save_planning(spoiled, path, "terms")
    with pytest.raises(CheckpointError, match=r"a\.safetensors: .*verb_bias has weights"):
        open_planning(path)


def test_the_packaged_adapter_states_its_terms_and_knows_what_follows_in_kitchens():
    with safe_open(planning_file("kitchen"), "pt") as file:
        assert "CC BY-NC 4.0" in json.loads(file.metadata()["planning"])["terms"]
    adapter = open_planning("kitchen")
    words = adapter.words
    seen = [words.read(text) for text in ("open the fridge", "take the milk", "close the fridge")]
    assert [words.name(action) for action in seen] == ["open fridge", "take milk", "close fridge"]
    chances = adapter.next(seen[:2])
    verb = chances.sum(1).argmax()
    assert words.verb_names[verb] in ("close", "take", "put")
    assert chances[seen[2]] > 20 * adapter.next([])[seen[2]]  # more than by itself
