"""Composed streams of known truth: scenes made of captioned photos, and questions about them.

    stream = compose(captions, num_scenes=100, num_questions=400, asked=80, seed=0)
    stream.questions[0].gold  # the scenes that show it

Words only, no pixels and no model, so that ten thousand scenes take a second. ``memory.py``
measures models on them.
"""

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal, get_args

import numpy as np

from streammem.errors import DatasetError

NeedleKind = Literal["present", "absent", "near", "swapped"]
NEEDLE_KINDS: tuple[NeedleKind, ...] = get_args(NeedleKind)

REPEATS = 0.1  # of a stream's scenes that show an earlier photo again
LEAST_PHOTOS = 20
HELD_BACK = 0.08  # of the photos asked about, which no scene shows: for "near" questions
LEAST_WORDS = 4  # content words of a question; "a dog runs" is true of too many scenes
NEAR = (0.3, 0.6)  # share of a near question's words that the scene most like it has
MOST_SHARE = 0.06  # of the photos, that may mention a thing left out of the stream
ATTRIBUTES = (
    "red blue green yellow white black brown orange pink purple".split(),  # noqa: SIM905
    ["two", "three", "four", "five"],
)
# Captions disagree about these: a question with one in place of the other may be true.
CONFUSED = {
    "brown": ("orange", "red", "black"), "orange": ("brown", "red", "yellow"),
    "red": ("orange", "pink", "brown"), "yellow": ("orange", "white"), "white": ("yellow",),
    "pink": ("red", "purple"), "purple": ("pink", "blue"), "blue": ("purple", "green"),
    "green": ("blue",), "black": ("brown", "blue"),
}  # fmt: skip
# Things that hardly all five captions of a photo leave out.
THINGS = {
    "horse": "horse pony",
    "bicycle": "bicycle bicyclist cyclist biker",
    "motorcycle": "motorcycle motorbike motorcyclist dirtbike",
    "snow": "snow snowy ski skier skies snowboard snowboarder snowboarding sled",
    "boat": "boat canoe raft sailboat",
    "pool": "pool",
    "skateboard": "skateboard skateboarder skateboarding skater",
    "swing": "swing",
    "umbrella": "umbrella",
    "guitar": "guitar",
    "bird": "bird seagull pigeon duck",
    "surfer": "surfer surf surfboard",
    "basketball": "basketball",
    "football": "football",
    "climber": "climb climber climbing",
    "camel": "camel",
    "tent": "tent camp campfire",
    "fish": "fish fisherman fishing",
    "trampoline": "trampoline",
    "fountain": "fountain",
}
SYNONYMS = {
    "men": "man", "guy": "man", "guys": "man", "male": "man", "gentleman": "man",
    "women": "woman", "lady": "woman", "ladies": "woman", "female": "woman",
    "children": "child", "kid": "child", "kids": "child", "toddler": "child", "baby": "child",
    "people": "person", "persons": "person", "puppy": "dog", "dogs": "dog", "bike": "bicycle",
    "bikes": "bicycle", "kayak": "boat", "kayaker": "boat", "kayaking": "boat", "grey": "gray",
    "ocean": "sea", "rocky": "rock", "grassy": "grass", "sandy": "sand", "woods": "forest",
}  # fmt: skip
STOP_WORDS = frozenset(
    "a an the of in on at to with and or by for from near into onto over under up down out off "  # noqa: SIM905
    "while as is are be being been has have having his her its their it he she they them there "
    "this that which who whose what through along across around behind beside between next front "
    "other another one some several group background camera photo picture image something someone "
    "very small large little big young old top side both each against about above after before "
    "outside inside outdoors wearing wears dressed looking looks during".split()
)


@dataclass(frozen=True, slots=True)
class StreamQuestion:
    """A description to search for in a stream.

    Attributes:
        text: from a caption, for example ``a man in a red hat``.
        kind: ``present``: some scenes show it. None does for the others: ``absent``, it has a
            thing that the whole stream lacks; ``near``, each of its words fits some scene, no
            scene fits them all; ``swapped``, a scene fits it but for one colour or number.
        gold: scenes that show it, rising; empty unless ``present``.
        photo: index of the photo whose caption it is.
        caption: index of that caption.
    """

    text: str
    kind: NeedleKind
    gold: tuple[int, ...]
    photo: int
    caption: int


@dataclass(frozen=True, slots=True)
class ComposedStream:
    """Scenes in time order, each given by its photo's index, and questions about them."""

    scenes: tuple[int, ...]
    questions: tuple[StreamQuestion, ...]


def compose(
    captions: Sequence[Sequence[str]], num_scenes: int, num_questions: int, *, asked: int, seed: int
) -> ComposedStream:
    """Make a stream and its questions: half present, the other half in thirds of the rest.

    Args:
        captions: of each photo, by different writers.
        num_scenes: >= 2. If there are fewer photos, those not asked about are repeated.
        num_questions: wanted; fewer if the photos do not give as many.
        asked: only the first so many photos are asked about; the rest are distractors.
        seed: equal seeds make equal streams.

    Raises:
        DatasetError: too few photos.
    """
    check_enough(asked)
    if asked > len(captions) or num_scenes < 2:
        raise DatasetError(f"streams: {num_scenes} scenes, {asked} of {len(captions)} photos asked")
    rng = np.random.default_rng(seed)
    words = [frozenset(word for text in texts for word in words_of(text)) for texts in captions]
    things = _left_out(words, rng)
    shown, near, absent = _split_photos(words, things, asked, rng)
    scenes = _scenes(shown, asked, num_scenes, rng)
    maker = _QuestionMaker(captions, words, scenes, things, rng)
    present = [photo for photo in dict.fromkeys(scenes) if photo < asked]
    wanted = {"present": num_questions - num_questions // 2}
    wanted |= dict.fromkeys(NEEDLE_KINDS[1:], num_questions // 6)
    from_photos = {"present": present, "absent": absent, "near": near, "swapped": present}
    questions = [
        q for kind in NEEDLE_KINDS for q in maker.make(kind, from_photos[kind], wanted[kind])
    ]
    return ComposedStream(tuple(scenes), tuple(questions))


def check_enough(asked: int) -> None:
    """Check that there are enough photos for questions of every kind.

    Raises:
        DatasetError: fewer than ``LEAST_PHOTOS``.
    """
    if asked < LEAST_PHOTOS:
        raise DatasetError(
            f"streams: {asked} photos to ask about; give at least {LEAST_PHOTOS} of them"
        )


@lru_cache(1 << 16)
def words_of(text: str) -> tuple[str, ...]:
    """Return the stems of a description's content words, in order."""
    words = re.findall(r"[a-z]+", text.lower())
    return tuple(_stem(SYNONYMS.get(word, word)) for word in words if word not in STOP_WORDS)


def bm25(captions: Sequence[str], text: str) -> np.ndarray:
    """Score captions against a text by their words, [N].

    Source: Robertson and Zaragoza 2009, with k1 1.2 and b 0.75.
    """
    documents = [words_of(text) for text in captions]
    lengths = np.array([len(words) for words in documents])
    relative = 0.25 + 0.75 * lengths / max(1.0, lengths.mean())
    scores = np.zeros(len(captions))
    for word in set(words_of(text)):
        counts = np.array([words.count(word) for words in documents])
        having = np.count_nonzero(counts)
        weight = np.log(1 + (len(captions) - having + 0.5) / (having + 0.5))
        scores += weight * counts * 2.2 / (counts + 1.2 * relative)
    return scores


class _QuestionMaker:
    """Makes questions of each kind about one sequence of scenes."""

    def __init__(
        self,
        captions: Sequence[Sequence[str]],
        words: Sequence[frozenset[str]],
        scenes: Sequence[int],
        things: frozenset[str],
        rng: np.random.Generator,
    ) -> None:
        self.captions, self.words, self.things, self.rng = captions, words, things, rng
        self.scenes: dict[int, list[int]] = defaultdict(list)  # of each photo
        for scene, photo in enumerate(scenes):
            self.scenes[photo].append(scene)
        self.photos: dict[str, set[int]] = defaultdict(set)  # shown, by word
        for photo in self.scenes:
            for word in words[photo]:
                self.photos[word].add(photo)

    def make(self, kind: NeedleKind, photos: Sequence[int], wanted: int) -> list[StreamQuestion]:
        """Ask about the photos in random order, a second time only after all were asked about."""
        made: list[StreamQuestion] = []
        order = [
            (photo, caption)
            for caption in range(max(map(len, self.captions)))
            for photo in self.rng.permutation(np.array(photos, np.int64)).tolist()
        ]
        for photo, caption in order:
            if len(made) == wanted:
                break
            if caption < len(self.captions[photo]):
                question = self._question(kind, photo, caption)
                made += [question] if question else []
        return made

    def _question(self, kind: NeedleKind, photo: int, caption: int) -> StreamQuestion | None:
        text: str | None = _description(self.captions[photo][caption])
        assert text is not None
        words = set(words_of(text))
        if len(words) < LEAST_WORDS:
            return None
        if kind == "swapped":
            text = self._swapped(text, photo)
        fits = {
            "present": True,
            "absent": bool(words & self.things),
            "near": self._near(words),
            "swapped": text is not None,
        }
        if text is None or not fits[kind]:
            return None
        gold = {photo} | self._fully_described(words) if kind == "present" else set()
        scenes = sorted(scene for each in gold for scene in self.scenes[each])
        return StreamQuestion(text, kind, tuple(scenes), photo, caption)

    def _fully_described(self, words: set[str]) -> set[int]:
        """Return the photos shown of which one caption has all of these words.

        "a black dog" and "snow" of two captions may be the snow of a brown dog.
        """
        return {
            photo
            for photo in self._fitting(words)
            if any(words <= set(words_of(text)) for text in self.captions[photo])
        }

    def _fitting(self, words: Iterable[str]) -> set[int]:
        """Return the photos shown whose captions together have all of these words."""
        return set.intersection(*(self.photos.get(word, set()) for word in words))

    def _near(self, words: set[str]) -> bool:
        """Return whether each word fits some scene, and no scene fits most of the words."""
        if words & self.things or not all(self.photos.get(word) for word in words):
            return False
        shared = Counter(photo for word in words for photo in self.photos[word])
        return NEAR[0] <= max(shared.values()) / len(words) <= NEAR[1]

    def _swapped(self, text: str, photo: int) -> str | None:
        """Change one colour or number so that the text fits no scene."""
        for values in ATTRIBUTES:
            found = re.findall(rf"(?<!and )\b({'|'.join(values)})\b(?! and)", text)
            if len(found) != 1:  # "a black and white dog" and the like
                continue
            alike = CONFUSED.get(found[0], ())
            others = [v for v in values if v not in alike and _stem(v) not in self.words[photo]]
            rest = set(words_of(text.replace(found[0], "")))
            # Only this photo fits the rest: another may show the new colour without a mention.
            if others and len(rest) >= LEAST_WORDS - 1 and self._fitting(rest) <= {photo}:
                value = others[int(self.rng.integers(len(others)))]
                return re.sub(rf"\b{found[0]}\b", value, text)
        return None


def _left_out(words: Sequence[frozenset[str]], rng: np.random.Generator) -> frozenset[str]:
    """Choose things to leave out of the stream, and return their words."""
    chosen: set[str] = set()
    for thing in rng.permutation(sorted(THINGS)).tolist():
        stems = {_stem(word) for word in THINGS[thing].split()}
        lost = sum(bool((chosen | stems) & each) for each in words)
        if lost <= 2 * MOST_SHARE * len(words):
            chosen |= stems
    return frozenset(chosen)


def _split_photos(
    words: Sequence[frozenset[str]], things: frozenset[str], asked: int, rng: np.random.Generator
) -> tuple[list[int], list[int], list[int]]:
    """Split photos: shown in the stream, held back for ``near``, left out for ``absent``."""
    without = [photo for photo, each in enumerate(words) if not each & things]
    ours = rng.permutation([photo for photo in without if photo < asked]).tolist()
    held = max(1, int(HELD_BACK * asked))
    shown = ours[held:] + rng.permutation([p for p in without if p >= asked]).tolist()
    if not ours[held:]:
        raise DatasetError("streams: no photo is left to show; give more of them")
    absent = [photo for photo in range(asked) if words[photo] & things]
    return shown, ours[:held], absent


def _scenes(
    shown: Sequence[int], asked: int, num_scenes: int, rng: np.random.Generator
) -> list[int]:
    fresh = min(len(shown), max(1, round((1 - REPEATS) * num_scenes)))
    photos = list(shown[:fresh])
    crowd = [photo for photo in shown if photo >= asked]
    many = num_scenes - fresh > 2 * REPEATS * num_scenes
    again = rng.choice(crowd if many and crowd else photos, num_scenes - fresh)
    return [int(photo) for photo in rng.permutation(np.concatenate([photos, again]))]


def _description(caption: str) -> str:
    text = re.sub(r"\s+([.,;!?])", r"\1", " ".join(caption.split())).strip(" .!\"'")
    return text[:1].lower() + text[1:]


def _stem(word: str) -> str:
    for suffix in ("ing", "es", "ed", "s", "e"):
        if word.endswith(suffix) and len(word) >= len(suffix) + 3 and not word.endswith("ss"):
            word = word.removesuffix(suffix)
            break
    return word[:-1] if word[-1:] == word[-2:-1] else word
