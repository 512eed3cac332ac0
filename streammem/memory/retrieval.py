"""The retriever: which rows a query is about, in which order, and whether any of them shows it.

    query = Query(key, Now(time.time(), {"door": 60.0}), background @ key, model.null, words, 900)
    hits = retrieve(memory, query, Window(stream=TimeSpan(0, 600)), k=4)
    seen = [hit for hit in hits if hit.score >= SEEN]

Every search of a memory goes through here: ``find``, answers in words, computed answers. A ranking
rule is one function in ``RANKERS``; it then holds in all three, and for "not seen":

    rows in the window -> cosines by kind of key ─┬─> rankers -> probability: order, score, seen
                          words of the captions ──┘

    content_words("two dogs are running")              # {"dog", "run"}
    names("A man is riding a motorcycle.", content_words("a person rides a motorbike"))  # True
"""

import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple, Protocol

import numpy as np

from streammem.errors import ConfigError
from streammem.memory.entry import KEY_KINDS, Entry, Now
from streammem.types import Matched, TimeSpan

if TYPE_CHECKING:
    from streammem.memory.named import NamedThing  # it reads names with this module's words

MARGINS = {"visual_keys": 0.0, "caption_keys": 0.65, "note_keys": 0.45}
"""What a key's cosine must exceed a visual key's by to count as much, by its kind.

Sentences are nearer to each other than to pictures. The model's own captions tell less than the
visual keys they were chosen by, but find a scene by the caption's own words; what people say tells
more, and is found where the picture does not show it. Measured: docs/research/memory.md, *How
questions find scenes*.
"""

# Of names that are read off visual keys, see ``shown_by``; fitted to films of one half of the
# clips and photos, reported on the other: docs/research/answers.md, *Names read off keys*.
NAME_EXCESS, NAME_COSINE = 0.254, 4.12
NAME_WORD, HAS_WORD = 0.278, 0.371
NAME_SHARE, HAS_SHARE = 0.398, 0.025
NAME_BIAS, NAME_GROWTH = 0.236, 0.808  # as much of what is absent is claimed as by cosines alone
# Of rows by up to 1 beyond that 0.1 to 0.3 are right, by 2 to 3 half of them, by more 0.95: so
# log-odds count half. By 1 below 0.03 are, as of rows that only a near caption would show.
NAME_ABOVE = 0.5
WORD_LOGITS = (-8.0, 4.0)  # beyond these they tell no more
LEAST_SHARE = 1e-5

MATCHED: dict[str, Matched] = {
    "visual_keys": "picture",
    "caption_keys": "caption",
    "note_keys": "speech",
}
"""What a kind of key was made of."""

# Fitted to one film of joined real clips, reported on another; docs/research/answers.md, *Films*.
LEVEL, RAW = 4.7, 10.0  # see ``scale_of``
BELOW, ABOVE = 0.03, 0.15  # cosine that changes the log-odds by one, see ``Scale``
NAMED = 0.06  # cosine beyond the level that a caption counts which names what is looked for
# Likewise words that were said: just less, so that of the two the scene that shows it comes first.
# Fitted: below, pictures that do not show it come before the words; above, those that do come after
# them. docs/research/speech.md, *What was seen, and what was said*.
NAMED_ALOUD = 0.058
OTHER_SENSE = 1.0  # cosine that what is seen counts less where what was said is looked for

# Of descriptions, see ``counted``; docs/research/answers.md, *What counts*.
DESCRIBES = 3  # content words from which on a query tells what a scene shows, and not one thing
ALIKE = 0.9  # cosine of two scenes' keys; one clip shown again has 0.99, two clips at most 0.93

# Rate of false sightings aimed at: of questions about things that the memory lacks.
FALSE_SIGHTINGS = 0.15

# A row whose score is at least this counts as one that shows what is looked for.
SEEN = 0.5

TAIL = 0.01  # of the background; its mean score is where a query's chance matches begin
# Around the rate aimed at: further down the scores are not quite a Gumbel's.
_QUANTILES = (0.7, 0.75, 0.8, 0.85, 0.9, 0.95)


# -- what is looked for, and where --


class GumbelNull(NamedTuple):
    """How far the best of n chance matches exceeds a query's tail, in deviations of its scores.

    A Gumbel distribution of location ``location + growth sqrt(2 ln n)``.
    """

    location: float
    growth: float
    scale: float


# Of streammem-tiny's keys, for models that bring none of their own; fitted by
# `python -m benchmarks memory --fit` to questions about training photos.
DEFAULT_NULL = GumbelNull(location=-3.441, growth=0.879, scale=0.336)


class NameReadout(NamedTuple):
    """Reads off visual keys, linearly, whether they show the one thing that a name is of.

    Two judges: a logit that was learned from pictures that list the thing, and shares of classes
    that a classifier of pictures knows, which sum to 1 over all of them.

    Attributes:
        word: [D_key] float32 and an offset, whose sum with a key is the logit; None without.
        classes: [C, D_key] float32 weights of every class.
        offsets: [C] float32 of them.
        chosen: numbers of the classes that are such a thing, such as breeds of dogs; empty without.
    """

    word: tuple[np.ndarray, float] | None
    classes: np.ndarray
    offsets: np.ndarray
    chosen: np.ndarray

    def odds(self, keys: np.ndarray) -> float:
        """Return what visual keys [K, D_key] of a row tell, on the scale of log-odds.

        The best key's logit counts, and the mean share of all keys.
        """
        found = 0.0
        if self.word is not None:
            weights, offset = self.word
            logit = float((keys @ weights).max()) + offset
            found += HAS_WORD + NAME_WORD * (min(max(logit, WORD_LOGITS[0]), WORD_LOGITS[1]) + 4)
        if len(self.chosen):
            logits = keys @ self.classes.T + self.offsets  # [K, C]
            shares = np.exp(logits - logits.max(axis=1, keepdims=True))
            share = shares[:, self.chosen].sum(axis=1) / shares.sum(axis=1)
            found += HAS_SHARE + NAME_SHARE * (math.log(float(share.mean()) + LEAST_SHARE) + 7)
        return found


class Query(NamedTuple):
    """A description to look for.

    Attributes:
        key: [D_key] float32 unit row in the memory's key space.
        now: when it is asked, for the age of rows.
        background: [B] cosines of ``key`` with a fixed bank of unrelated pictures' keys, B >= 2;
            without them nothing counts as seen.
        null: of the model's keys.
        words: content words of the description, see ``words.content_words``; a text that holds
            them all names it.
        num_keys: visual keys that it is compared with, of the window; the more, the nearer the
            best chance match.
        heard: whether what was said may show it; of what was seen, words spoken are no proof.
        spoken: whether what is looked for is what was said, so that nothing else shows it.
        things: taught things that the description names; only a row that shows all of them does.
        name: reads the thing that the description names off visual keys; None where it describes
            more than one thing, or one that is not known.
    """

    key: np.ndarray
    now: Now = Now()
    background: np.ndarray = np.empty(0)
    null: GumbelNull = DEFAULT_NULL
    words: frozenset[str] = frozenset()
    num_keys: int = 2
    heard: bool = True
    spoken: bool = False
    things: "tuple[NamedThing, ...]" = ()
    name: NameReadout | None = None


class Scale(NamedTuple):
    """What a query's scores, on the scale of cosines with visual keys, mean.

    ::

        probability   1 |               _____----
                   0.5  |          ____/              slowly above the level (ABOVE),
                        |        _/                   steeply below (BELOW)
                     0  |_______/
                                 level         -> score

    Attributes:
        level: from which on a row counts as seen.
    """

    level: float

    def probability(self, scores: np.ndarray) -> np.ndarray:
        """Return how likely rows of these scores [N] show what is looked for, [N] in [0, 1]."""
        beyond = np.asarray(scores, np.float64) - self.level
        odds = beyond / np.where(beyond < 0, BELOW, ABOVE)
        return np.asarray(1 / (1 + np.exp(-np.clip(odds, -50, 50))))

    def score_at(self, probability: float) -> float:
        """Return the score whose probability, in (0, 1), this is."""
        return float(self.score_of(np.array(math.log(probability / (1 - probability)))))

    def score_of(self, odds: np.ndarray) -> np.ndarray:
        """Return the scores [N] of these log-odds [N]."""
        return np.asarray(self.level + odds * np.where(odds < 0, BELOW, ABOVE))


def scale_of(query: Query) -> Scale:
    """Return the scale of a query's scores.

    Its level is the cosine whose normalised score, see ``normalise``, and ``RAW`` times itself
    make ``LEVEL``: how it compares with the best chance match among ``num_keys``, and how near it
    is at all. Without a background no cosine reaches it.
    """
    if len(query.background) < 2:
        return Scale(1.0)
    at_0, at_1 = normalise(
        np.array([0.0, 1.0]), query.background, max(2, query.num_keys), query.null
    ).tolist()
    return Scale((LEVEL - at_0) / (at_1 - at_0 + RAW))


def shown_by(query: Query, rows: Sequence[np.ndarray]) -> np.ndarray:
    """Return how well rows show what is looked for by their visual keys.

    By the best cosine; where the query's name is known, by one small model of the cosine, its
    excess over the background, and what is read off the keys.

    Args:
        query: what is looked for.
        rows: visual keys [K, D_key] of each.

    Returns:
        [N] float64 on the scale of cosines, see ``scale_of``.
    """
    cosines = np.array([float((keys @ query.key).max()) for keys in rows])
    if query.name is None or len(query.background) < 2:
        return cosines
    odds = np.array([query.name.odds(keys) for keys in rows])
    odds += NAME_EXCESS * _excess(cosines, query.background) + NAME_COSINE * cosines
    odds += NAME_BIAS - NAME_GROWTH * _growth(max(2, query.num_keys))
    return scale_of(query).score_of(np.where(odds < 0, odds, NAME_ABOVE * odds))


class Window(NamedTuple):
    """A part of the memory; None does not restrict.

    Attributes:
        stream: seconds of each source's own clock.
        wall: Unix seconds; rows that do not know their wall clock are outside.
        source: name of one source.
    """

    stream: TimeSpan | None = None
    wall: TimeSpan | None = None
    source: str | None = None


EVERYTHING = Window()


class Clip(NamedTuple):
    """A row of the memory, as far as it lies within a window.

    Attributes:
        entry: the row.
        start: seconds, >= the row's.
        end: seconds, <= the row's; half-open.
    """

    entry: Entry
    start: float
    end: float


def clipped(entries: Sequence[Entry], window: Window = EVERYTHING) -> tuple[Clip, ...]:
    """Cut rows to a window.

    Args:
        entries: oldest first.
        window: see ``Window``.

    Returns:
        What overlaps, in the same order. A row of one instant lies where it is.
    """
    found = []
    for entry in entries:
        if window.source not in (None, entry.source):
            continue
        start, end = entry.start, entry.end
        for span in (window.stream, window.wall and _on_stream(entry, window.wall)):
            if span:
                start, end = max(start, span.start), min(end, span.end)
        if start < end or (start == end and entry.start == entry.end):
            found.append(Clip(entry, start, end))
    return tuple(found)


# -- ranking --


class Candidates(NamedTuple):
    """Rows that a ranker compares.

    Attributes:
        entries: N rows.
        cosines: by kind of key, [N] float64: the query's cosine with a row's best key of that
            kind; -inf where the row has none.
        now: when the query is asked.
        named: by the same names, [N] bool: whether the row's caption, or its notes, name what is
            looked for.
        scale: of the query.
        excess: [N] by how much a row exceeds the level of the thing that it shows least of those
            that the query names; None where it names none.
        shown: [N] what the visual keys count, see ``shown_by``.
        spoken: see ``Query``.
    """

    entries: Sequence[Entry]
    cosines: Mapping[str, np.ndarray]
    now: Now
    named: Mapping[str, np.ndarray]
    scale: Scale
    shown: np.ndarray
    excess: np.ndarray | None = None
    spoken: bool = False

    def ages(self) -> np.ndarray:
        """Return [N] seconds since each row ended, >= 0; see ``Entry.age``."""
        return np.array([entry.age(self.now) for entry in self.entries], np.float64)


Ranker = Callable[[Candidates, np.ndarray], np.ndarray]
"""Takes candidates and their scores [N] so far, on the scale of visual cosines; returns new ones.

The scores begin as the best cosine of any kind; they are finite and may be negative, so a rule that
scales them scales positive ones only. Rankers are pure, and judge each row by itself or among all
candidates, which are then every row of the window. For example, what was seen long ago counts less:

    def half_life(candidates: Candidates, scores: np.ndarray) -> np.ndarray:
        return np.where(scores > 0, scores * 0.5 ** (candidates.ages() / 3600.0), scores)
"""


def nearest_key(candidates: Candidates, _scores: np.ndarray) -> np.ndarray:
    """Let the best key decide, its cosine less what ``MARGINS`` has for its kind.

    A text that names what is looked for counts as a picture that shows it by ``NAMED``, and one
    whose own picture shows it too as more.
    """
    return np.asarray(np.maximum.reduce(list(_by_kind(candidates).values())))


RANKERS: dict[str, Ranker] = {
    "nearest": nearest_key,
}
"""Every ranking rule by its name in the option ``rankers``, which applies them in its order.

Without ``nearest`` the margins are left out. The laws of a rule stand in tests/qa/test_answerer.py.
"""

DEFAULT_RANKERS = ("nearest",)


def check_rankers(names: Sequence[str]) -> None:
    """Refuse names that are not registered.

    Raises:
        ConfigError: one is not in ``RANKERS``.
    """
    for name in names:
        if name not in tuple(RANKERS):
            raise ConfigError(f"rankers: {name!r} is not known; give some of {', '.join(RANKERS)}")


@dataclass(frozen=True, slots=True, eq=False)
class Hit:
    """A row, and how well it fits a query.

    Attributes:
        score: in [0, 1], how likely the row shows what is looked for: by all its keys and words,
            after the rankers. From ``SEEN`` on it does.
        cosine: in [-1, 1], of the query and the row's best key of any kind.
        visual: cosine with its best visual key.
        text: cosine with its best key of a caption or a note; None where it has none.
        ranked: what the hits are ordered by: the rankers' score, of which ``score`` is made.
        matched: what the score rests on most.
    """

    entry: Entry
    score: float
    cosine: float
    visual: float
    text: float | None
    ranked: float
    matched: Matched

    @property
    def seen(self) -> bool:
        """Whether the row shows what is looked for."""
        return self.score >= SEEN


Hits = tuple[Hit, ...]


class Searchable(Protocol):
    """What ``retrieve`` needs of a memory."""

    def entries(self) -> tuple[Entry, ...]:
        """Return every row, oldest first."""
        ...

    def nearest(
        self, key: np.ndarray, k: int, among: Sequence[Entry] | None = None
    ) -> Sequence[Entry]:
        """Return rows that hold, for every kind of key, the k whose keys are nearest to ``key``."""
        ...


def retrieve(
    memory: Searchable,
    query: Query,
    window: Window = EVERYTHING,
    k: int | None = None,
    rankers: Sequence[str] = DEFAULT_RANKERS,
) -> Hits:
    """Find the rows that a query is about.

    Args:
        memory: what is searched.
        query: what is looked for.
        window: where.
        k: hits at most, >= 1; None returns every row of the window.
        rankers: names in ``RANKERS``, applied in this order.

    Returns:
        Best first; of equal ones that of the greater cosine, then the older one.

    Rows whose words name what is looked for are found too, however far their keys lie.
    """
    everywhere = window == EVERYTHING
    entries: Sequence[Entry] = (
        () if everywhere else [c.entry for c in clipped(memory.entries(), window)]
    )
    by_cosine = not query.things and query.name is None
    if k is not None and tuple(rankers) == DEFAULT_RANKERS and by_cosine:
        # The index finds them sooner: the best k by nearest key are among the best k of each kind.
        near = memory.nearest(query.key, k, None if everywhere else entries)
        known = {entry.segment for entry in near}
        rows = memory.entries() if everywhere else entries
        named = (e for e in _spelling(rows, query.words) if _names(e, query.words))
        entries = [*near, *(entry for entry in named if entry.segment not in known)]
    elif everywhere:
        entries = memory.entries()
    hits = rate(entries, query, rankers)
    return tuple(sorted(hits, key=lambda hit: (-hit.ranked, -hit.cosine, hit.entry.segment))[:k])


def rate(entries: Sequence[Entry], query: Query, rankers: Sequence[str] = DEFAULT_RANKERS) -> Hits:
    """Return how well each of these rows fits a query, in their order."""
    if not entries:
        return ()
    cosines = {kind: _best_cosines(entries, kind, query.key) for kind in KEY_KINDS}
    named = {
        "visual_keys": np.zeros(len(entries), bool),
        "caption_keys": np.array([names(_sure_caption(entry), query.words) for entry in entries]),
        "note_keys": np.array(
            [query.heard and names(_speech(entry), query.words, kinds=False) for entry in entries]
        ),
    }
    excess = None
    if query.things:
        by_thing = [[thing.excess(entry) for entry in entries] for thing in query.things]
        excess = np.min(by_thing, axis=0)
    visual = cosines["visual_keys"]
    shown = visual
    if query.name is not None:
        shown = shown_by(query, [entry.visual_keys for entry in entries])
    scale = scale_of(query)
    candidates = Candidates(entries, cosines, query.now, named, scale, shown, excess, query.spoken)
    text = np.maximum.reduce([each for kind, each in cosines.items() if kind != "visual_keys"])
    ranked = np.maximum(shown, text)
    for name in rankers:
        ranked = np.asarray(RANKERS[name](candidates, ranked), np.float64)
    best = np.argmax(np.stack(list(_by_kind(candidates).values())), axis=0)
    by_name = shown > visual  # the name made the picture count more than its cosine does
    columns = (
        candidates.scale.probability(ranked), np.maximum(visual, text), visual, text, ranked, best,
        by_name,
    )  # fmt: skip
    return tuple(
        Hit(
            entry, score, cosine, seen, None if words == -math.inf else words, order,
            "name" if named_so and not kind else MATCHED[tuple(cosines)[kind]],
        )
        for entry, score, cosine, seen, words, order, kind, named_so in zip(
            entries, *(column.tolist() for column in columns), strict=True
        )
    )  # fmt: skip


def counted(hits: Hits, query: Query) -> Hits:
    """Return the hits, in their order, that count as showing what is looked for.

    Of a thing those that are seen. A description fits one scene: of those that are seen the best
    counts, those whose pictures look like it, and those whose words name it.
    """
    seen = tuple(hit for hit in hits if hit.seen)
    one_thing = query.name is not None or len(query.words) < DESCRIBES
    if not seen or query.things or one_thing:
        return seen
    best = max(seen, key=lambda hit: hit.ranked).entry.visual_keys
    return tuple(
        hit
        for hit in seen
        if _names(hit.entry, query.words)
        or (hit.entry.visual_keys @ best.T).max(initial=-1.0) >= ALIKE
    )


# -- not seen --


def normalise(
    scores: np.ndarray, background_scores: np.ndarray, n: int, null: GumbelNull = DEFAULT_NULL
) -> np.ndarray:
    """Turn cosines into how far they exceed the best of `n` chance matches.

    z = (score - mean of the background's best ``TAIL``) / its deviation, then
    (z - location - growth sqrt(2 ln n)) / scale with the constants of ``null``: the best of n
    chance keys, on a scale that does not depend on n. So a fixed threshold gives one rate of false
    sightings for any size of memory. The tail tells more about a query than the mean does: some
    sentences have many near pictures, some none.

    Args:
        scores: [..., K] cosines of queries with visual keys of the memory.
        background_scores: [..., B] of the same queries with a fixed bank of background keys,
            B >= 2; some hundreds are needed for a steady tail.
        n: keys that were compared, >= 2.
        null: of the model's keys.

    Returns:
        [..., K] float64. Below `threshold(rate)`: not seen.

    Raises:
        ValueError: fewer than two background scores or keys.

    Source: Gumbel 1958; normalisation by background as in speaker verification (Auckenthaler,
        Carey and Lloyd-Thomas 2000); sqrt(2 ln n) is the growth of a normal maximum.
    """
    if n < 2:
        raise ValueError("normalise: needs at least two background scores and two keys")
    z = _excess(scores, background_scores)
    return (z - null.location - null.growth * _growth(n)) / null.scale


def threshold(rate: float) -> float:
    """Return the normalised score that the best of any number of chance keys exceeds at `rate`.

    Args:
        rate: false sightings a question, in (0, 1).

    Raises:
        ValueError: rate out of range.
    """
    if not 0 < rate < 1:
        raise ValueError(f"threshold: rate is {rate}; give a value between 0 and 1")
    return float(-np.log(-np.log1p(-rate)))


def fit_null(absent: Sequence[tuple[int, np.ndarray, np.ndarray]]) -> GumbelNull:
    """Fit a ``GumbelNull`` to questions whose answer is not in the memory.

    Least squares over quantiles, which is linear in the three constants.

    Args:
        absent: of memories of different sizes: n, the best cosine [Q] of each such question, and
            its background scores [Q, B].

    Raises:
        ValueError: fewer than two sizes.
    """
    if len({n for n, *_ in absent}) < 2:
        raise ValueError("fit_null: needs questions to memories of at least two sizes")
    rows, quantiles = [], []
    for n, best, background in absent:
        z = _excess(best[:, None], background)[:, 0]
        rows += [(1.0, _growth(n), -np.log(-np.log(p))) for p in _QUANTILES]
        quantiles += np.quantile(z, _QUANTILES).tolist()
    found = np.linalg.lstsq(np.array(rows), np.array(quantiles), rcond=None)[0]
    return GumbelNull(*(round(float(value), 3) for value in found))


# -- private --


def _by_kind(candidates: Candidates) -> dict[str, np.ndarray]:
    """Return what each kind of key, and the words it stands for, count on the visual scale."""
    scale, visual = candidates.scale, candidates.shown
    counts = {}
    for kind, cosines in candidates.cosines.items():
        scores = visual if kind == "visual_keys" else cosines - MARGINS[kind]
        if kind != "visual_keys":
            # A sentence that is merely near orders rows and shows nothing: of scenes that only
            # such captions would have shown, 4 in 100 did. One that names what is looked for
            # counts whatever the picture's key says: no answer may contradict what it prints.
            beyond = NAMED_ALOUD if kind == "note_keys" else NAMED
            named = np.maximum(visual, scale.level) + beyond
            near = np.minimum(scores, scale.level - BELOW)
            is_named = candidates.named[kind] & (candidates.excess is None)
            scores = np.where(is_named, named, near)
        elif candidates.excess is not None:
            # "my cup" is the thing that was taught, and not whatever looks like a cup.
            scores = scale.level + candidates.excess
        if candidates.spoken and kind != "note_keys":
            scores = np.minimum(scores, scale.level) - OTHER_SENSE
        counts[kind] = scores
    return counts


def _spelling(entries: Sequence[Entry], words: frozenset[str]) -> Iterator[Entry]:
    """Yield the rows whose text holds each of these words as a string, in any of its forms.

    Others name none of them. Reading all words of 1,000 captions takes ten times as long.
    """
    forms = [spellings(word) for word in words]
    if not forms:
        return
    for entry in entries:
        text = (entry.caption or "").lower()
        if entry.notes:
            text += _speech(entry).lower()
        for each in forms:
            if not any(map(text.__contains__, each)):
                break
        else:
            yield entry


def _names(entry: Entry, words: frozenset[str]) -> bool:
    return names(_sure_caption(entry), words) or names(_speech(entry), words, kinds=False)


def _sure_caption(entry: Entry) -> str:
    """Return the lines of a caption that were not cut as unsure: only these name anything."""
    lines = [line for line in (entry.caption or "").splitlines() if line]
    if len(lines) != len(entry.sureness):  # the bound on a caption's length cut a line
        return "" if any(sure.unsure for sure in entry.sureness) else "\n".join(lines)
    return "\n".join(
        line for line, sure in zip(lines, entry.sureness, strict=True) if not sure.unsure
    )


def _speech(entry: Entry) -> str:
    return "\n".join(note.text for note in entry.notes)


def _best_cosines(entries: Sequence[Entry], kind: str, key: np.ndarray) -> np.ndarray:
    """Return [N] float64: the cosine of each row's best key of a kind; -inf where it has none."""
    # Row by row: the digits of a row's score do not depend on what it is compared with, as they
    # would in one product of all keys. 10,000 rows take 25 ms longer.
    keys = (getattr(entry, kind) for entry in entries)
    return np.array([float((each @ key).max()) if len(each) else -math.inf for each in keys])


def _on_stream(entry: Entry, wall: TimeSpan) -> TimeSpan:
    """Bring a span of the wall clock to the row's own clock."""
    if entry.wall_start is None:
        return TimeSpan(entry.end, entry.start)  # nothing lies between
    offset = entry.start - entry.wall_start
    return TimeSpan(wall.start + offset, wall.end + offset)


def _growth(n: int) -> float:
    return math.sqrt(2 * math.log(n))


def _excess(scores: np.ndarray, background_scores: np.ndarray) -> np.ndarray:
    background = np.asarray(background_scores, np.float64)
    if background.ndim < 1 or background.shape[-1] < 2:
        raise ValueError("normalise: needs at least two background scores and two keys")
    num_best = max(1, round(TAIL * background.shape[-1]))
    best = np.partition(background, -num_best, axis=-1)[..., -num_best:]
    # A query that the bank cannot tell apart at all must not divide by zero.
    deviation = np.maximum(background.std(axis=-1, keepdims=True), 1e-6)
    excess = np.asarray(scores, np.float64) - best.mean(axis=-1, keepdims=True)
    return np.asarray(excess / deviation)


# -- words that two texts share: content words, brought to a common form. English only, by rules --

# Words that carry no content of a description, and words of questions that a model without a
# question head leaves in.
STOP_WORDS = frozenset(
    "a an the of in on at to with and or by for from near into onto over under up down out off "  # noqa: SIM905
    "while as is are was were be being been am has have having had do does did his her its their "
    "my your our it he she they them there here this that these those who whose what which when "
    "where why how often long many much times time ever some any something someone somebody "
    "thing things i you we can could will would not no yes seen see saw show shows shown showing "
    "one two three four five six seven eight nine ten several few very".split()
)
_IRREGULAR = {
    "men": "man", "women": "woman", "children": "child", "people": "person", "mice": "mouse",
    "feet": "foot", "teeth": "tooth", "geese": "goose", "ran": "run", "swam": "swim", "sat": "sit",
    "rode": "ride", "ate": "eat", "eaten": "eat", "ridden": "ride", "lying": "lie",
    "wolves": "wolf", "calves": "calf", "leaves": "leaf", "shelves": "shelf", "stood": "stand",
    "knives": "knife", "held": "hold", "drove": "drive", "flew": "fly", "threw": "throw",
    "caught": "catch",
}  # fmt: skip
_VOWELS = frozenset("aeiouy")
# Words of captions that name one, too: a dog in a caption answers for an animal. Only what always
# is one, and whose stem is nothing else: who is fishing is no fish, what is orange no fruit. Kinds
# of kinds are found by themselves.
_KINDS = {
    "person": "man woman child guy lady teenager adult crowd family player rider skier surfer "
    "snowboarder skateboarder skater cyclist biker swimmer runner climber hiker dancer worker "
    "officer soldier",
    "child": "boy girl baby toddler kid", "kid": "child", "man": "guy", "woman": "lady",
    "animal": "dog cat horse cow sheep goat pig rabbit camel elephant giraffe zebra lion tiger "
    "monkey squirrel deer bird turtle snake frog",
    "dog": "puppy hound poodle terrier retriever greyhound", "cat": "kitten", "horse": "pony",
    "cow": "calf", "sheep": "lamb", "rabbit": "bunny",
    "bird": "duck swan goose pigeon seagull parrot eagle hawk owl penguin chicken",
    "vehicle": "car truck bus van motorcycle bicycle tram tractor boat airplane helicopter",
    "car": "taxi suv minivan jeep sedan automobile", "truck": "lorry", "taxi": "cab",
    "bicycle": "bike bicyclist cyclist", "bike": "bicycle motorcycle",
    "motorcycle": "motorbike motorcyclist", "boat": "canoe kayak sailboat yacht ferry",
    "sofa": "couch", "couch": "sofa", "television": "tv", "tv": "television",
    "phone": "telephone cellphone", "telephone": "phone", "cup": "mug",
}  # fmt: skip


def stem(word: str) -> str:
    """Bring a word to a form that its plural and its simple inflections share.

    The form need not be a word: ``riding``, ``rides`` and ``ride`` give ``rid``.
    """
    word = _IRREGULAR.get(word, word)
    if word.endswith("'s"):
        word = word[:-2]
    for ending in ("ing", "ed"):
        base = word[: -len(ending)]
        if word.endswith(ending) and len(base) >= 2 and _VOWELS & set(base):
            word = (
                base[:-1]
                if len(base) > 2 and base[-1] == base[-2] and base[-1] not in "lsz"
                else base
            )
            break
    else:
        if word.endswith("ies") and len(word) > 4:
            word = word[:-3] + "y"
        elif word.endswith(("ches", "shes", "sses", "xes", "zes")):
            word = word[:-2]
        elif word.endswith("s") and not word.endswith(("ss", "us", "is")) and len(word) > 3:
            word = word[:-1]
    # "ride", "riding" -> "rid"; "carry", "carries", "carried" -> "carri"
    word = word[:-1] if word.endswith("e") and len(word) > 3 else word
    return word[:-1] + "i" if word.endswith("y") and len(word) > 3 else word


@lru_cache(maxsize=256)
def kinds_of(word: str) -> frozenset[str]:
    """Return the stems of words that name what this stem does, itself among them."""
    found, new = frozenset[str](), frozenset({word})
    while new:
        found |= new
        listed = [kinds for name, kinds in _KINDS.items() if stem(name) in new]
        new = frozenset(stem(kind) for kinds in listed for kind in kinds.split()) - found
    return found


@lru_cache(maxsize=256)
def spellings(word: str) -> tuple[str, ...]:
    """Return strings of which every text holds one that holds a word of this stem, or its kinds."""
    kinds = kinds_of(word)
    irregular = [form for form in _IRREGULAR if stem(form) in kinds]
    # An end in y becomes i: "skies" and "sky" share "sk".
    return (*(kind[:-1] if kind[-1:] in ("i", "y") else kind for kind in kinds), *irregular)


@lru_cache(maxsize=8192)  # captions of a memory are compared with every question
def content_words(text: str) -> frozenset[str]:
    """Return the stems of a text's words that carry content; none of a text without such words."""
    words = re.findall(r"[^\W_]+(?:'s)?", text.lower())
    return frozenset(stem(word) for word in words if word not in STOP_WORDS)


def names(text: str | None, words: frozenset[str], *, kinds: bool = True) -> bool:
    """Return whether one line of a text holds every one of these words, and there are any.

    Args:
        text: lines of words.
        words: stems, see ``content_words``.
        kinds: take a word that names a kind of one for it: a man for a person, a duck for a bird.
    """
    wanted = [kinds_of(word) if kinds else {word} for word in words]
    lines = map(content_words, (text or "").splitlines() if words else ())
    return any(all(each & line for each in wanted) for line in lines)
