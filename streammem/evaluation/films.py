"""Films of joined real clips, and questions of known truth about them.

    film = plan(clips, seconds=300, seed=0)          # which clip is shown when
    questions = ask_about(film, [clip.sentence for clip in clips])
    questions[0].text, questions[0].gold             # 'When was there a dog?', (4, 17)

A film shows clips again and again, cut to other lengths. What is true of a scene is what its
clip's one sentence says, so a thing that is visible and not in the sentence counts as absent: the
figures are lower bounds. Nothing is decoded here; `benchmarks/films.py` makes and watches films.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from streammem.evaluation.answers import CITED, Outcome
from streammem.evaluation.timelines import PHRASINGS, TimedQuestion
from streammem.memory.words import content_words, stem

SCENE_S = (2.0, 12.0)
OPERATORS = ("exists", "when", "first", "last", "how often", "how long", "before", "after")
ABSENT_SHARE = 1 / 3  # of questions

# Concrete things that a sentence names where they are the matter, and seldom names where they are
# not: whether "a street", "a man" or "water" is there does not follow from one sentence.
ASKED = frozenset(
    map(
        stem,
        "ball basketball bat bicycle bike bmx bottle bowl bus camel car cart cat cow cup dog "  # noqa: SIM905
        "dress duck goat horse kettle kite lift mirror mixer motorcycle mug paraglider rabbit "
        "railing scooter swan taxi telescope watermelon".split(),
    )
)
VERBS = frozenset(
    "shuffle pour jump place walk inspect swing eat wrestle apply play mix do knead rotate "  # noqa: SIM905
    "stretch swim ride breakdance drive turn dance drift stand surf run take snowboard".split()
)
# Words of one kind are true of one another's scenes.
KINDS = tuple(
    frozenset(map(stem, kind.split()))
    for kind in ("car taxi", "bike bicycle bmx motocross", "cup mug", "scooter motorcycle")
)
# Everyday things, near ones among them: an elephant for a camel, a cat for a dog.
EVERYDAY = (  # noqa: SIM905
    "an elephant|a cat|a sheep|a pig|a zebra|a giraffe|a lion|a bear|a monkey|a parrot|an owl|"
    "a penguin|a fish|a turtle|a snake|a butterfly|a train|a bus|a tram|an airplane|a helicopter|"
    "a boat|a canoe|a tractor|a fire engine|an ambulance|a police car|a guitar|a piano|a violin|"
    "a drum|a trumpet|a laptop|a keyboard|a television|a telephone|a printer|a refrigerator|"
    "a washing machine|a vacuum cleaner|a toothbrush|an umbrella|a suitcase|a wheelchair|"
    "a pizza|a hamburger|a banana|an apple|a sandwich|a birthday cake|an ice cream|a wine glass|"
    "a candle|a clock|a sofa|a bathtub|a toilet|a ladder|a hammer|scissors|a sewing machine|"
    "a swimming pool|a football match|a tennis player|a golfer|a boxing match|an ice hockey player|"
    "a skateboard|a wedding|a christmas tree|fireworks|a snowman|a lighthouse|a windmill|a bridge|"
    "a castle|a waterfall|a volcano|a rainbow|a desert|a campfire|a tent|a fishing rod|a rifle|"
    "a soldier|a policeman|a firefighter|a doctor|a nurse|a chef|a clown|a baby in a cradle|"
    "a woman playing the violin|a man mowing the lawn|a dog in a boat|a child blowing out candles|"
    "a man shaving his beard|a woman washing dishes|a boy reading a book|a girl painting a picture"
).split("|")


class Clip(NamedTuple):
    """A piece of video that one sentence describes.

    Attributes:
        name: of its file.
        sentence: for example ``a camel walks in a fenced pen``.
        seconds: its length.
    """

    name: str
    sentence: str
    seconds: float


class FilmScene(NamedTuple):
    """A clip as it is shown in a film: its number, and which seconds of it."""

    clip: int
    start: float
    end: float


@dataclass(frozen=True, slots=True)
class Film:
    """Scenes in time order."""

    scenes: tuple[FilmScene, ...]

    @property
    def edges(self) -> np.ndarray:
        """[N + 1] seconds of the film at which its scenes begin and end."""
        return np.cumsum([0.0, *(scene.end - scene.start for scene in self.scenes)])


def plan(clips: Sequence[Clip], seconds: float, *, seed: int) -> Film:
    """Order clips into a film: every clip once, then repeats, never one clip twice in a row.

    Args:
        clips: at least two.
        seconds: length; the film ends with the first scene that reaches it.
        seed: equal seeds make equal films.
    """
    rng = np.random.default_rng(seed)
    scenes: list[FilmScene] = []
    deck: list[int] = []
    total = 0.0
    while total < seconds:
        if not deck:
            deck = rng.permutation(len(clips)).tolist()
        number = deck.pop(-2 if scenes and deck[-1] == scenes[-1].clip and len(deck) > 1 else -1)
        if scenes and number == scenes[-1].clip:
            continue
        length = min(clips[number].seconds, float(rng.uniform(*SCENE_S)))
        start = float(rng.uniform(0, clips[number].seconds - length))
        scenes.append(FilmScene(number, start, start + length))
        total += length
    return Film(tuple(scenes))


def things_of(sentence: str) -> tuple[str, ...]:
    """Return what one can ask for of a sentence: its things, and itself as a description.

    For example ``a yellow dog walks on dry grass`` gives ``a dog`` and
    ``a yellow dog walking on dry grass``.
    """
    words = sentence.split()
    named = [w if w.endswith("s") and w != "dress" else f"a {w}" for w in words if stem(w) in ASKED]
    # The first verb becomes a participle; the sentence may have none.
    for at, word in enumerate(words[1:], 1):
        forms = (word, word.removesuffix("s"), word.removesuffix("es"))
        verb = next((form for form in forms if form in VERBS), None)
        if verb and words[at - 1] not in ("a", "an", "the"):
            base = verb[:-1] if verb[-1] == "e" else verb
            words[at] = {"run": "running", "swim": "swimming"}.get(verb, f"{base}ing")
            break
    return (*dict.fromkeys(named), " ".join(words))


def ask_about(film: Film, sentences: Sequence[str], *, seed: int) -> tuple[TimedQuestion, ...]:
    """Make questions by operator, a third of them about things that never come.

    Args:
        film: what is asked about.
        sentences: of all its clips.
        seed: of the phrasings, and of which absent things are asked for.

    Returns:
        Questions with the scenes that answer them: of ``first`` and ``last`` those of one
        appearance, of ``how often`` the first scene of each appearance, neighbours being one.
        ``before`` and ``after`` only where a thing is seen once, with the scene that they point
        to and its neighbour.
    """
    rng = np.random.default_rng(seed)
    shown = [sentences[scene.clip] for scene in film.scenes]
    questions = []

    def ask(operator: str, thing: str, gold: tuple[int, ...]) -> None:
        phrasings = PHRASINGS[operator]
        text = phrasings[int(rng.integers(len(phrasings)))].format(thing)
        questions.append(TimedQuestion(text, operator, gold))

    for thing in dict.fromkeys(t for s in dict.fromkeys(shown) for t in things_of(s)):
        runs = _runs([i for i, sentence in enumerate(shown) if _shows(sentence, thing)])
        whole = tuple(i for run in runs for i in run)
        for operator in ("exists", "when", "how long"):
            ask(operator, thing, whole)
        ask("first", thing, runs[0])
        ask("last", thing, runs[-1])
        ask("how often", thing, tuple(run[0] for run in runs))
        if len(whole) == 1 and 0 < whole[0] < len(shown) - 1:
            ask("before", thing, (whole[0] - 1, whole[0]))
            ask("after", thing, (whole[0], whole[0] + 1))
    words = frozenset().union(*map(content_words, sentences))
    absent = [thing for thing in EVERYDAY if not content_words(thing) <= words]
    wanted = round(len(questions) * ABSENT_SHARE / (1 - ABSENT_SHARE))
    order = rng.permutation(len(absent)).tolist()
    for number in range(wanted):
        thing = absent[order[number % len(order)]]
        ask(OPERATORS[number % len(OPERATORS)], thing, ())
    return tuple(questions)


def _shows(sentence: str, thing: str) -> bool:
    words = content_words(thing)
    if thing == things_of(sentence)[-1] or len(words) > 1:
        return thing == things_of(sentence)[-1]
    kinds = words.union(*(kind for kind in KINDS if words & kind))
    return bool(kinds & content_words(sentence))


def _runs(scenes: Sequence[int]) -> list[tuple[int, ...]]:
    """Join neighbouring scenes."""
    runs: list[list[int]] = []
    for scene in scenes:
        if runs and scene == runs[-1][-1] + 1:
            runs[-1].append(scene)
        else:
            runs.append([scene])
    return [tuple(run) for run in runs]


# -- scores --


def scenes_cited(edges: np.ndarray, spans: Sequence[tuple[float, float]]) -> list[int]:
    """Return the scenes that spans show, in the spans' order.

    Boundaries that were found lie beside the true ones: a scene counts where the span covers at
    least half of it, or it at least half of the span.
    """
    cited: list[int] = []
    for start, end in spans:
        shared = np.minimum(edges[1:], end) - np.maximum(edges[:-1], start)
        least = np.minimum(np.diff(edges), end - start) / 2
        cited += np.flatnonzero(shared >= np.maximum(least, 1e-6)).tolist()
    return list(dict.fromkeys(cited))


def table(outcomes: Sequence[Outcome]) -> dict[str, dict[str, float]]:
    """Sum up by operator, and of ``all``.

    Returns:
        ``questions``; ``right``; ``refused``: of what is there, answered as not seen; ``claimed``:
        of what is absent, answered as seen; ``evidence``: of what is there, a true scene is among
        the best ``CITED`` pieces of evidence.
    """
    groups: dict[str, list[Outcome]] = {}
    for outcome in outcomes:
        groups.setdefault(outcome.question.operator, []).append(outcome)
    groups["all"] = list(outcomes)

    def share(found: list[bool]) -> float:
        return round(float(np.mean(found)), 3) if found else float("nan")

    def of(found: list[Outcome]) -> dict[str, float]:
        present = [o for o in found if o.question.gold]
        return {
            "questions": len(found),
            "right": share([o.right for o in found]),
            "right, present": share([o.right for o in present]),
            "refused": share([not o.seen for o in present]),
            "claimed": share([o.seen for o in found if not o.question.gold]),
            "evidence": share([bool({*o.cited[:CITED]} & {*o.question.gold}) for o in present]),
        }

    return {name: of(found) for name, found in groups.items()}
