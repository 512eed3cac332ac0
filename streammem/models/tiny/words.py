"""Names of things: off a segment's tokens, for captions and answers; off its keys, for searches.

    words = WordsOfTokens(16, 384, ("cup", "knife"))
    words.likely(tokens, 5)  # ["knife"]
    names = NamesOfKeys(256, ("cup", "knife"), 1000, {"dog": Meaning("", range(151, 269))})
    names.readout("a dog").odds(entry.visual_keys)

They read what the memory keeps of a segment, so that they also name what memories of before show.
"""

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from streammem.memory.retrieval import STOP_WORDS, NameReadout, content_words, kinds_of, stem
from streammem.models.backbones.language import Beginnings

SHOWN = 5  # words of a segment that a prompt shows, at most
LEAST_SHOWN = 0.25  # probability of a word that a prompt shows
DROPOUT = 0.4
BEGUN = 2  # names of a segment with which captions begin, at most
NOT_BEGUN = frozenset("person beach mountain pool snow tree water".split())  # noqa: SIM905
# Words with which a caption goes on behind a thing; others would make another thing of it.
FOLLOWING = (
    *(".", ",", " and", " are", " at", " behind", " covered", " filled", " flying", " full"),
    *(" hanging", " in", " is", " lies", " lying", " near", " next", " on", " over", " parked"),
    *(" sits", " sitting", " standing", " stands", " that", " under", " with"),
)
_UNCOUNTED = frozenset(
    "bacon bread broccoli cereal cheese cream fruit honey jam juice ketchup mayonnaise milk oil "  # noqa: SIM905
    "paper salt soap spaghetti tea toothpaste".split()
)
_NO_SINGULAR = frozenset(
    "binoculars clothes eyeglasses glasses goggles headphones jeans leggings pajamas pants pliers "  # noqa: SIM905
    "pyjamas scissors shorts skis stairs sunglasses tights tongs trousers tweezers".split()
)
_STOPS = frozenset(".,;:!?")
# Plurals whose stem is another word's: short hair is no shorts, and who is panting no pants.
_OWN_STEM = frozenset({"pants", "shorts"})


class NamesInText:
    """Finds which of some names a text has: all content words of a name, or kinds of them.

    A man is a person, and a duck a bird. Words that stand together as a name of several words are
    no shorter name: a hot dog is no dog, but "a hot dog and a dog" has both. Of names that mean the
    same those count that are said, if any are.

        NamesInText(("dog", "hot dog", "phone", "telephone"))("A hot dog and a phone.")  # {1, 2}

    Args:
        names: each once.
    """

    def __init__(self, names: Sequence[str]) -> None:
        self.names = tuple(names)
        self._stems = [frozenset(_stems_of(name)) - STOP_WORDS - _STOPS for name in self.names]
        wanted = [[kinds_of(word) for word in sorted(stems)] for stems in self._stems]
        # By a word that a text must have: names, with the kinds of each of their content words; and
        # names of several words, the longest first, with the kinds of all as they stand.
        self._by_word = defaultdict[str, list[tuple[int, list[frozenset[str]]]]](list)
        self._phrases = defaultdict[str, list[tuple[int, list[frozenset[str]]]]](list)
        alike = defaultdict[frozenset[frozenset[str]], set[int]](set)
        for number, kinds in enumerate(wanted):
            alike[frozenset(kinds)].add(number)
            for word in kinds[0] if kinds else ():
                self._by_word[word].append((number, kinds))
            phrase = [kinds_of(word) for word in _stems_of(self.names[number])]
            for word in phrase[0] if len(kinds) > 1 else ():
                self._phrases[word].append((number, phrase))
        for phrases in self._phrases.values():
            phrases.sort(key=lambda named: -len(named[1]))
        self._alike = [alike[frozenset(kinds)] for kinds in wanted]

    def __call__(self, text: str) -> set[int]:
        """Return which names the text has, by number."""
        # 1. Names of several words where they stand, and the words that are left.
        words, found, rest, at = _stems_of(text), set[int](), set[str](), 0
        while at < len(words):
            for number, phrase in self._phrases.get(words[at], ()):
                end = at + len(phrase)
                there = zip(phrase, words[at:end], strict=False)
                if end <= len(words) and all(word in kinds for kinds, word in there):
                    found.add(number)
                    at = end
                    break
            else:
                rest.add(words[at])
                at += 1
        # 2. Names of one word, and of several that stand apart.
        every = set(words)
        found |= {
            number
            for word in every
            for number, wanted in self._by_word.get(word, ())
            if all(each & every for each in wanted) and any(each & rest for each in wanted)
        }
        # 3. Of those that mean the same the said ones.
        said = {number for number in found if self._stems[number] <= every}
        return {number for number in found if number in said or not self._alike[number] & said}


def _stems_of(text: str) -> list[str]:
    """Return a text's words in order, as stems but for those without content, and its stops."""
    words = re.findall(r"[^\W_]+(?:'s)?|[.,;:!?]", text.lower())
    return [word if word in STOP_WORDS or word in _OWN_STEM else stem(word) for word in words]


class WordsOfTokens(nn.Module):
    """Scores each name by a two-layer perceptron over all tokens of a segment.

    Args:
        tokens: M, tokens of a segment.
        dim: D, their width.
        names: of the things, in the order of their scores, each once.
        hidden: width of the hidden layer.
    """

    center: Tensor
    scale: Tensor

    def __init__(self, tokens: int, dim: int, names: Sequence[str], hidden: int = 256) -> None:
        super().__init__()
        self.names = tuple(names)
        self.register_buffer("center", torch.zeros(dim))
        self.register_buffer("scale", torch.ones(dim))
        self.down = nn.Linear(tokens * dim, hidden)
        self.drop = nn.Dropout(DROPOUT)
        self.up = nn.Linear(hidden, len(self.names))
        self._names_in = NamesInText(self.names)

    def forward(self, tokens: Tensor) -> Tensor:
        """Map tokens [B, M, D], of any device, to logits [B, W], each that the thing is there."""
        x = ((tokens.to(self.center.device) - self.center) / self.scale).flatten(1)
        return self.up(self.drop(F.gelu(self.down(x))))

    @torch.inference_mode()
    def likely(self, tokens: Tensor, count: int, least: float = 0.0) -> list[str]:
        """Name what a segment most likely shows, the likeliest first.

        Args:
            tokens: [M, D] of one segment.
            count: names at most.
            least: probability of a name that is given, in [0, 1].
        """
        shares = self(tokens[None].float())[0].sigmoid()
        best = shares.topk(min(count, len(shares)))
        return [
            self.names[i]
            for share, i in zip(best.values.tolist(), best.indices.tolist(), strict=True)
            if share >= least
        ]

    def named_in(self, text: str) -> set[int]:
        """Return which names a text has, by number; see ``NamesInText``."""
        return self._names_in(text)

    @torch.inference_mode()
    def naming(self, tokens: Tensor, texts: Sequence[str]) -> np.ndarray:
        """Return how many of the things that texts name are there; see ``NamingEncoder``."""
        shares = self(tokens[None].float())[0].sigmoid().cpu().numpy()
        return np.array([sum(2 * shares[i] - 1 for i in self.named_in(text)) for text in texts])


def caption_beginnings(names: Sequence[str]) -> Beginnings:
    """Return with what captions that name things may begin: with each, and with both.

    Args:
        names: of what is likely there, the likeliest first. People and surroundings, which captions
            name by themselves, and all behind the first ``BEGUN`` others are left out.
    """
    things = [name for name in names if name not in NOT_BEGUN][:BEGUN]
    nouns = [with_article(name) for name in things]
    both = [" and ".join(nouns)] if len(nouns) > 1 else []
    texts = tuple(noun[0].upper() + noun[1:] for noun in [*nouns, *both])
    return Beginnings(texts, FOLLOWING)


def takes_article(name: str) -> bool:
    """Return whether one such thing is called with an article: a cup; but bread, dark glasses."""
    head = name.partition(" of ")[0].rpartition(" ")[2]
    return name not in _UNCOUNTED and head not in _NO_SINGULAR


def with_article(name: str) -> str:
    """Return a thing's name with its article, where it takes one."""
    if not takes_article(name):
        return name
    return f"an {name}" if name[0] in "aeiou" else f"a {name}"


class NameMeaning(NamedTuple):
    """What stands for a name.

    Attributes:
        word: one of the names of ``WordsOfTokens``; empty without.
        classes: numbers of the classifier's classes that are such a thing.
    """

    word: str
    classes: Sequence[int]


class NamesOfKeys(nn.Module):
    """Reads names of things off visual keys, linearly.

    What it tells of a picture is what two judges would: ``WordsOfTokens``, and the classifier of
    ImageNet that the frame encoder was made for. It was fitted to their verdicts on photos.

    Args:
        key_dim: D_key.
        words: names of ``WordsOfTokens``, in the order of their scores.
        classes: of the classifier.
        lexicon: further names, and others for the same; a word is a name without standing here.

    Raises:
        ValueError: a meaning that there is not.
    """

    def __init__(
        self, key_dim: int, words: Sequence[str], classes: int, lexicon: Mapping[str, NameMeaning]
    ) -> None:
        super().__init__()
        self.lexicon = dict(lexicon)
        self.words = nn.Linear(key_dim, len(words))
        self.classes = nn.Linear(key_dim, classes)
        place = {word: i for i, word in reversed(list(enumerate(words)))}
        # By how a name is spelled, and by its stems, where one that came before has not taken them:
        # glasses are no glass, and a moped is no mop.
        self._spelled: dict[str, tuple[int | None, np.ndarray]] = {
            _spelled(word): (i, np.empty(0, np.intp)) for word, i in place.items()
        }
        self._meanings = {content_words(word): self._spelled[_spelled(word)] for word in place}
        by_word, taken = dict(self._meanings), set[frozenset[str]]()
        for name, (word, chosen) in self.lexicon.items():
            if (word and word not in place) or not all(0 <= i < classes for i in chosen):
                raise ValueError(f"{name}: {word or list(chosen)} is not known")
            key = content_words(name)
            number = place[word] if word else by_word.get(key, (None,))[0]
            self._spelled[_spelled(name)] = meaning = number, np.array(chosen, np.intp)
            if key not in taken:
                taken.add(key)
                self._meanings[key] = meaning
        self._meanings.pop(frozenset(), None)
        self._spelled.pop("", None)

    def readout(self, description: str) -> NameReadout | None:
        """Return what reads the thing that a description names off keys.

        None where it names none that is known, or tells more of it.
        """
        spelled = _spelled(description)
        meaning = self._spelled.get(spelled)
        if meaning is None and not spelled.endswith(("ing", "ed")):  # who is fishing is no fish
            meaning = self._meanings.get(content_words(description))
        if meaning is None:
            return None
        number, chosen = meaning
        word: tuple[np.ndarray, float] | None = None
        if number is not None:
            word = (
                self.words.weight.detach()[number].numpy(),
                float(self.words.bias.detach()[number]),
            )
        classes, offsets = self.classes.weight.detach().numpy(), self.classes.bias.detach().numpy()
        return NameReadout(word, classes, offsets, chosen)

    @torch.no_grad()
    def fit(self, keys: Tensor, words: Tensor, classes: Tensor, ridge: float = 0.1) -> None:
        """Fit both judges in closed form, by ridge regression.

        Args:
            keys: [N, D_key] of pictures.
            words: [N, W] logits of their tokens.
            classes: [N, C] logits of the classifier.
            ridge: added to the squares of the centred keys.
        """
        keys = keys.double()
        centred = keys - keys.mean(0)
        square = centred.T @ centred + ridge * torch.eye(keys.shape[1], dtype=torch.float64)
        for readout, logits in ((self.words, words.double()), (self.classes, classes.double())):
            weight = torch.linalg.solve(square, centred.T @ (logits - logits.mean(0))).T
            readout.weight.copy_(weight)
            readout.bias.copy_(logits.mean(0) - weight @ keys.mean(0))


def _spelled(text: str) -> str:
    """Return the words of a text, small, without those that carry no content."""
    words = re.findall(r"[^\W_]+(?:'s)?", text.lower())
    return " ".join(word for word in words if word not in STOP_WORDS)
