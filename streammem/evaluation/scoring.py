"""Scores of replies: strictly, and by a benchmark's own rule; intervals and paired tests.

    score(question, Reply("(B)"), first_letter)   # Scored(strict=1.0, official=1.0, choice=1)
    share([True, True, False], clusters=["a", "a", "b"])

The strict rule takes a reply only if it names exactly what is right. The official rules are those
that the benchmarks publish, some of which take the right letter anywhere in a reply.
"""

import math
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from streammem.evaluation.metrics import tokenise
from streammem.types import TimeSpan

if TYPE_CHECKING:
    from streammem.evaluation.questions import SuiteQuestion

Z = 1.96  # of a 95% interval
RESAMPLES = 2000
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
_LEAD = re.compile(
    r"^(?:(?:so|thus|therefore|ok|okay)[ ,]*)?(?:the )?(?:best |correct |right |final )?"
    r"(?:answer|option|choice|answer option)(?: is)?\s*:?\s*",
    re.IGNORECASE,
)
_LETTER = re.compile(r"\(?([A-Z])\)?(?=[.):,;\s]|$)")
_PREFIXES = (
    "The best answer is", "The correct answer is", "The answer is", "The answer",
    "The best option is", "The correct option is", "Best answer:", "Best option:",
)  # fmt: skip
_COUNTS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
_NUMBERS = {word: float(n) for n, word in enumerate((*_COUNTS, "eleven", "twelve"))}
_NUMBERS |= {"never": 0.0, "once": 1.0, "twice": 2.0}

Official = Callable[[str, "SuiteQuestion"], float]


class Reply(NamedTuple):
    """What a model replies to a question.

    Attributes:
        text: its words.
        choice: the option that it chose by likelihood; None where it replied in words.
        seen: whether it says that what is asked for was there; None where it does not say.
        cited: seconds of the video that it rests on, best first.
        tokens: of its prompt, where they are known.
        score: in [0, 1], of what it rests on; None where it states none.
        answer: of a session, for what compares scenes.
    """

    text: str
    choice: int | None = None
    seen: bool | None = None
    cited: tuple[TimeSpan, ...] = ()
    tokens: int = 0
    score: float | None = None
    answer: object = None


class Scored(NamedTuple):
    """A reply's scores.

    Attributes:
        strict: 1 or 0.
        official: in [0, 1], by the benchmark's own rule.
        choice: the option that was named; None where none, or several, were.
        f1: overlap of tokens with the best reference, of an open question.
        hit: whether something that is cited shares time with the evidence, or over a timeline
            shows a scene of it for the most part; None where the suite states none, or nothing is
            cited.
    """

    strict: float
    official: float
    choice: int | None = None
    f1: float | None = None
    hit: bool | None = None


def score(question: "SuiteQuestion", reply: Reply, official: Official) -> Scored:
    """Score a reply.

    Args:
        question: its ``check`` says how: ``options`` by what is chosen, ``said`` by a word that
            stands among the options (yes or no), ``number`` by the one number in it, ``text`` by
            exact match, ``timeline`` as ``answers.is_right``.
        reply: of a model.
        official: the suite's own rule, for what has options.
    """
    if question.check == "timeline":
        return _timeline_scored(question, reply)
    hit = None
    if question.evidence and reply.cited:
        hit = any(min(a.end, b.end) > max(a.start, b.start)
                  for a in reply.cited for b in question.evidence)  # fmt: skip
    if question.check == "number":
        right = float(number_in(reply.text) == float(question.references[0]))
        return Scored(right, mean_relative_accuracy(reply.text, question.references[0]), hit=hit)
    if question.check == "text":
        exact = float(any(normal(reply.text) == normal(ref) for ref in question.references))
        overlap = max(token_f1(reply.text, ref) for ref in question.references)
        return Scored(exact, exact, f1=overlap, hit=hit)
    if reply.choice is not None:
        right = float(question.answer == (reply.choice,))
        return Scored(right, right, reply.choice, hit=hit)
    if question.check == "said":
        chosen = said_in(reply.text, question.options)
        strict = float(chosen is not None and question.answer == (chosen,))
        word = question.options[question.answer[0]]
        by_rule = float(word in reply.text or reply.text.strip() == word[0])
        return Scored(strict, by_rule, chosen, hit=hit)
    letters = named_options(reply.text, question.options)
    strict = float(bool(letters) and letters == question.answer)
    only = letters[0] if len(letters) == 1 else None
    if len(question.answer) > 1:
        return Scored(strict, strict, only, hit=hit)
    return Scored(strict, official(reply.text, question), only, hit=hit)


def _timeline_scored(question: "SuiteQuestion", reply: Reply) -> Scored:
    from streammem.evaluation.answers import is_right
    from streammem.evaluation.films import scenes_cited

    asked, edges = question.truth
    cited = set(scenes_cited(edges, reply.cited))
    # A boundary that was found lies beside the true one: what is cited touches the next scene, too.
    hit = bool(cited & set(asked.gold)) if question.evidence and reply.cited else None
    if reply.answer is None:  # it has no evidence to compare: whether it was seen is all it says
        right = reply.seen is not None and reply.seen == bool(asked.gold) and not asked.gold
    else:
        right = is_right(asked, reply.answer, cited, edges)  # type: ignore[arg-type]
    return Scored(float(right), float(right), hit=hit)


# -- strict --


def named_options(reply: str, options: Sequence[str]) -> tuple[int, ...]:
    """Return the options that a reply names, rising; none where it is not plain.

    A reply names options by letters alone (``B``, ``(B)``, ``B. a cat``, ``A, C``,
    ``The answer is B.``) or by the whole text of one. A letter within a sentence names nothing:
    "A man opens B's door" is no reply.
    """
    text = _LEAD.sub("", reply.strip().strip("*`\"'").strip())
    whole = [i for i, option in enumerate(options) if normal(option) == normal(text)]
    if len(whole) == 1 and (len(normal(text)) > 1 or not _LETTER.fullmatch(text.strip("() ."))):
        return (whole[0],)
    first = re.match(r"\(?([A-Z])\)?(?:[.):,;]|\s*$|\s*(?=and\b|or\b|&|/|\n))", text)
    if not first:
        return ()
    rest = text[first.end() :].strip()
    number = LETTERS.index(first[1])
    if number >= len(options):
        return ()
    if normal(rest) in ("", normal(options[number])):
        return (number,)
    # Several letters, and nothing else: a list of them, or a reply that keeps its choice open.
    listed = re.split(r"[\s,;&/.()]+|\band\b", text)
    letters = [word for word in listed if word]
    if all(re.fullmatch(r"[A-Z]", word) for word in letters):
        found = sorted({LETTERS.index(letter) for letter in letters})
        return tuple(found) if found[-1] < len(options) else ()
    others = {m[1] for m in re.finditer(r"(?:^|\W)\(?([A-Z])(?=[.)]|\s*$)", rest)} - {first[1]}
    words = normal(rest)
    if others or any(
        normal(option) and normal(option) in words
        for i, option in enumerate(options)
        if i != number
    ):
        return ()
    return (number,)


def said_in(reply: str, options: Sequence[str]) -> int | None:
    """Return which option a reply begins with; None if none, or if another stands in it, too."""
    words = tokenise(reply)
    found = [i for i, option in enumerate(options) if option.lower() in words]
    begins = [i for i in found if words[0] == options[i].lower()]
    return begins[0] if len(found) == 1 and begins else None


def number_in(reply: str) -> float | None:
    """Return the one number that a reply states, in digits or as a word up to twelve."""
    digits = re.findall(r"-?\d+(?:\.\d+)?", reply)
    found = {float(each) for each in digits}
    found |= {_NUMBERS[word] for word in tokenise(reply) if word in _NUMBERS}
    return found.pop() if len(found) == 1 else None


def normal(text: str) -> str:
    """Lower-case, without punctuation, articles and doubled spaces.

    Source: SQuAD (Rajpurkar et al. 2016), its evaluation script's rule.
    """
    return " ".join(word for word in tokenise(text) if word not in ("a", "an", "the"))


def token_f1(reply: str, reference: str) -> float:
    """Harmonic mean of the shares of common tokens, in [0, 1]; as SQuAD."""
    ours, theirs = normal(reply).split(), normal(reference).split()
    common = sum((Counter(ours) & Counter(theirs)).values())
    if not ours or not theirs:
        return float(ours == theirs)
    return 2 * common / (len(ours) + len(theirs))


# -- official --


def option_text(reply: str, question: "SuiteQuestion") -> float:
    """VideoLLaMB's: the reply without full stops at its ends is the right option's text."""
    bare = reply.strip().strip(".")
    right = question.options[question.answer[0]]
    return float(bare in (right, right.strip("."), LETTERS[question.answer[0]]))


def letter_anywhere(reply: str, question: "SuiteQuestion") -> float:
    """OVO-Bench's: the right letter occurs anywhere in the reply, within a word too."""
    return float(LETTERS[question.answer[0]] in reply)


def first_letter(reply: str, question: "SuiteQuestion") -> float:
    """Video-MME's: the first capital that is a letter, after a usual beginning is taken off."""
    for prefix in _PREFIXES:
        reply = reply.replace(prefix, "")
    found = re.search(f"[{LETTERS[: max(4, len(question.options))]}]", reply)
    return float(found is not None and found[0] == LETTERS[question.answer[0]])


def before_bracket(reply: str, question: "SuiteQuestion") -> float:
    """MLVU's: what stands before the first ``)`` is the right letter."""
    return float(reply.split(")")[0].strip().lstrip("(") == LETTERS[question.answer[0]])


def mean_relative_accuracy(reply: str, reference: str) -> float:
    """Share of tolerances 0.5, 0.45 ... 0.05 that a number's relative error keeps within.

    Source: VSI-Bench (arXiv 2412.14171), section 3; a reply without a number counts as 0.
    """
    found = re.search(r"-?\d+(?:\.\d+)?", reply)
    stated, true = float(found[0]) if found else 0.0, float(reference)
    if true == 0:
        return float(stated == 0)
    error = abs(stated - true) / abs(true)
    return float(np.mean(error <= 1 - np.linspace(0.5, 0.95, 10) + 1e-9))


# -- intervals and tests --


class Share(NamedTuple):
    """A mean of scores in [0, 1] with its 95% interval, and of how many it is."""

    value: float
    low: float
    high: float
    of: int


def share(scores: Sequence[float], clusters: Sequence[object]) -> Share | None:
    """Return a mean with Wilson's interval, widened where scores of a cluster go together.

    Questions about one video succeed and fail together: the number of questions is divided by the
    variance of clustered means over the variance of independent ones, where that is above 1.

    Args:
        scores: in [0, 1]; None is returned of none.
        clusters: what each belongs to, such as its video.
    """
    n = len(scores)
    if not n:
        return None
    mean = float(np.mean(scores))
    spread = float(np.var(scores))
    groups: dict[object, float] = defaultdict(float)
    for value, cluster in zip(scores, clusters, strict=True):
        groups[cluster] += value - mean
    effective = float(n)
    if spread > 0 and 1 < len(groups) < n:
        clustered = sum(total**2 for total in groups.values()) / n**2
        clustered *= len(groups) / (len(groups) - 1)
        effective = n / max(1.0, clustered / (spread / n))
    centre = (mean + Z**2 / (2 * effective)) / (1 + Z**2 / effective)
    half = (
        Z * math.sqrt(mean * (1 - mean) / effective + Z**2 / (4 * effective**2))
        / (1 + Z**2 / effective)
    )  # fmt: skip
    return Share(mean, max(0.0, centre - half), min(1.0, centre + half), n)


def risk_coverage(sureness: Sequence[float], right: Sequence[bool]) -> list[tuple[float, float]]:
    """Return how many answers are wrong if only the surest are given.

    Returns:
        (coverage, risk), both in [0, 1], from the surest answer to all.
    """
    order = sorted(range(len(right)), key=lambda i: -sureness[i])
    wrong = np.cumsum([not right[i] for i in order])
    return [(n / len(order), float(wrong[n - 1]) / n) for n in range(1, len(order) + 1)]


def mcnemar(only_first: int, only_second: int) -> float:
    """Return the exact two-sided p of McNemar's test: how often one alone is right, by chance."""
    n, least = only_first + only_second, min(only_first, only_second)
    if not n:
        return 1.0
    tail = sum(math.comb(n, k) for k in range(least + 1)) / 2**n
    return min(1.0, 2 * tail)


def fisher(hits: int, of: int, other_hits: int, other_of: int) -> float:
    """Return the one-sided p of Fisher's exact test that the first share is not the larger one."""
    total, right = of + other_of, hits + other_hits
    if not of or not other_of:
        return 1.0
    every = math.comb(total, right)
    most = min(of, right)
    return sum(math.comb(of, k) * math.comb(other_of, right - k)
               for k in range(hits, most + 1)) / every  # fmt: skip


def paired_bootstrap(
    differences: Sequence[float], clusters: Sequence[object], seed: int = 0
) -> tuple[float, float]:
    """Return the 95% interval of a mean difference, resampling clusters as a whole."""
    sums: dict[object, list[float]] = defaultdict(lambda: [0.0, 0.0])
    for value, cluster in zip(differences, clusters, strict=True):
        sums[cluster][0] += value
        sums[cluster][1] += 1
    rows = np.array(list(sums.values()))  # [C, 2]
    drawn = np.random.default_rng(seed).integers(0, len(rows), (RESAMPLES, len(rows)))
    totals = rows[drawn].sum(axis=1)
    low, high = np.quantile(totals[:, 0] / totals[:, 1], [0.025, 0.975])
    return float(low), float(high)
