"""The planning adapter: which verb and which noun come next, from the actions before.

    adapter = open_planning("kitchen")                     # of the package, or a path
    actions = [adapter.words.read(text) for text in ("take the kettle", "turn on the tap")]
    chances = adapter.next([action for action in actions if action])        # [V, N], of sum 1

It reads words alone, no picture. It is a file of its own and off by default: the terms of the logs
that it was trained on do not allow commercial use. What it is mixed with: `qa/next_action.py`.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from streammem.errors import CheckpointError, ConfigError
from streammem.models.checkpoint import PACKAGED

PLANNING_FILES = {"kitchen": PACKAGED / "streammem-tiny" / "planning-kitchen.safetensors"}
HISTORY = 64  # actions that are read, the newest
_WORD = re.compile(r"[a-z]+")


class Action(NamedTuple):
    """A verb and a noun, as numbers in ``ActionWords``."""

    verb: int
    noun: int


@dataclass(frozen=True)
class ActionWords:
    """The verbs and nouns that actions consist of.

    Attributes:
        verbs: by name, its other forms ("get", "pick-up"); the first numbers are the commonest.
        nouns: likewise; ``bottle:water`` stands for "water bottle".
    """

    verbs: Mapping[str, Sequence[str]]
    nouns: Mapping[str, Sequence[str]]

    @cached_property
    def verb_names(self) -> tuple[str, ...]:
        """Names by number."""
        return tuple(self.verbs)

    @cached_property
    def noun_names(self) -> tuple[str, ...]:
        """Names by number."""
        return tuple(self.nouns)

    def name(self, action: Action) -> str:
        """Return an action in words, as in ``turn on tap``."""
        noun = " ".join(reversed(self.noun_names[action.noun].split(":")))
        return f"{self.verb_names[action.verb].replace('-', ' ')} {noun}"

    def read(self, text: str) -> Action | None:
        """Read the first action of a sentence; None where it names no known verb and noun.

        "A man is cutting the red onion" is *cut onion*: verbs are known in their usual forms, and
        of nouns that begin at one word the longest counts.
        """
        words = _WORD.findall(text.lower())
        for at, word in enumerate(words):
            verb = self._verb(words, at, word)
            if verb is None:
                continue
            for place in range(at + 1, len(words)):
                for length in (3, 2, 1):
                    noun = self._noun_of.get(tuple(words[place : place + length]))
                    if noun is not None:
                        return Action(verb, noun)
        return None

    def _verb(self, words: Sequence[str], at: int, word: str) -> int | None:
        for stem in stems(word):
            for parts in ((stem, *words[at + 1 : at + 2]), (stem,)):  # "turn on" before "turn"
                if (verb := self._verb_of.get("-".join(parts))) is not None:
                    return verb
        return None

    @cached_property
    def _verb_of(self) -> dict[str, int]:
        return {form: n for n, forms in enumerate(self.verbs.values()) for form in forms}

    @cached_property
    def _noun_of(self) -> dict[tuple[str, ...], int]:
        found = {}
        for number, forms in enumerate(self.nouns.values()):
            for form in forms:
                words = tuple(reversed(form.split(":")))
                found[words] = number
                found.setdefault((*words[:-1], f"{words[-1]}s"), number)
        return found


def stems(word: str) -> tuple[str, ...]:
    """Return what a verb's form may be of: "cutting", "cuts" and "cut" are of "cut"."""
    for ending in ("ing", "es", "ed", "s"):
        if word.endswith(ending) and len(word) - len(ending) > 1:
            stem = word.removesuffix(ending)
            doubled = stem[:-1] if len(stem) > 2 and stem[-1] == stem[-2] else stem
            return word, stem, f"{stem}e", doubled
    return (word,)


class PlanningAdapter(nn.Module):
    """A recurrent model of past actions: p(verb), then p(noun) given the verb.

    Args:
        words: of its actions.
        dim: width of a word's vector.
        hidden: width of the recurrent state.
        dropout: in training, of vectors and states.
    """

    def __init__(
        self, words: ActionWords, dim: int = 96, hidden: int = 192, dropout: float = 0.5
    ) -> None:
        super().__init__()
        self.words, self.sizes = words, {"dim": dim, "hidden": hidden}
        num_verbs, num_nouns = len(words.verbs), len(words.nouns)
        self.verb = nn.Embedding(num_verbs, dim)
        self.noun = nn.Embedding(num_nouns, dim)
        self.first = nn.Parameter(torch.zeros(2 * dim))  # in place of an action, before the first
        self.recurrent = nn.GRU(2 * dim, hidden, batch_first=True)
        self.drop = nn.Dropout(dropout)
        self.to_verb = nn.Linear(hidden, dim)
        self.to_noun = nn.Linear(hidden, dim)
        self.verb_bias = nn.Parameter(torch.zeros(num_verbs))
        self.noun_bias = nn.Parameter(torch.zeros(num_nouns))
        self.given = nn.Parameter(torch.zeros(num_verbs, num_nouns))  # log-odds of a noun by verb
        for embedding in (self.verb, self.noun):  # which give the logits, too
            nn.init.normal_(embedding.weight, std=dim**-0.5)

    def states(self, actions: Tensor) -> Tensor:
        """Map actions [B, T, 2] to states [B, T + 1, H], each of what came before."""
        seen = torch.cat([self.verb(actions[..., 0]), self.noun(actions[..., 1])], -1)
        first = self.first.expand(len(actions), 1, -1)
        states, _ = self.recurrent(self.drop(torch.cat([first, seen], 1)))
        return self.drop(states)

    def verb_logits(self, states: Tensor) -> Tensor:
        """Map states [..., H] to [..., V]."""
        return self.to_verb(states) @ self.verb.weight.T + self.verb_bias

    def noun_logits(self, states: Tensor) -> Tensor:
        """Map states [..., H] to [..., N], to which ``given`` of the verb is added."""
        return self.to_noun(states) @ self.noun.weight.T + self.noun_bias

    @torch.inference_mode()
    def all_next(self, actions: Tensor) -> Tensor:
        """Map actions [T, 2] to [T + 1, V, N]: how likely each action is after the first 0 ... T.

        Rows sum to 1.
        """
        states = self.states(actions[None])[0]
        verbs = self.verb_logits(states).softmax(-1)
        nouns = (self.noun_logits(states)[:, None] + self.given).softmax(-1)
        return verbs[..., None] * nouns

    def next(self, actions: Sequence[Action]) -> np.ndarray:
        """Return [V, N] float32 of sum 1: how likely each action comes next.

        Args:
            actions: oldest first; the newest ``HISTORY`` count.
        """
        seen = torch.tensor(list(actions[-HISTORY:]), dtype=torch.long).reshape(-1, 2)
        return self.all_next(seen)[-1].numpy()


def save_planning(adapter: PlanningAdapter, path: Path, terms: str) -> None:
    """Write an adapter as float16 with its words and the terms that it is under."""
    words = {"verbs": adapter.words.verbs, "nouns": adapter.words.nouns}
    about = json.dumps({"terms": terms, "sizes": adapter.sizes, **words})
    tensors = {k: v.detach().half().contiguous() for k, v in adapter.state_dict().items()}
    save_file(tensors, path, {"planning": about})  # one key: the order of several is not fixed


def planning_file(name: str | Path) -> Path:
    """Return the file of an adapter: one of ``PLANNING_FILES`` by name, or a path.

    Raises:
        ConfigError: there is none.
    """
    path = PLANNING_FILES.get(str(name), Path(name))
    if not path.is_file():
        known = ", ".join(PLANNING_FILES)
        raise ConfigError(f"{name}: no such planning adapter; give {known}, or a file of one")
    return path


def open_planning(name: str | Path) -> PlanningAdapter:
    """Open an adapter by name, or from a file that ``save_planning`` wrote.

    Raises:
        ConfigError: there is none of that name.
        CheckpointError: the file is corrupt or of another layout.
    """
    path = planning_file(name)
    try:
        with safe_open(path, "pt") as file:
            about = json.loads((file.metadata() or {})["planning"])
            tensors = {key: file.get_tensor(key).float() for key in file.keys()}  # noqa: SIM118
        for key, value in tensors.items():
            if not value.isfinite().all():
                raise ValueError(f"{key} has weights that are no finite numbers")
        words = ActionWords(about["verbs"], about["nouns"])
        adapter = PlanningAdapter(words, **about["sizes"])
        adapter.load_state_dict(tensors)
    except (SafetensorError, OSError, KeyError, ValueError, TypeError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise CheckpointError(f"{path}: is no planning adapter, or corrupt ({reason})") from error
    return adapter.eval().requires_grad_(False)
