"""Scores of captions: which of several fits a picture best, how likely its words are right.

From keys alone; no language model runs for it, and no words are made here. The likeliest caption is
often not the best: what the language model finds likely and what the keys find in the picture err
differently.

For confidence three things count: whether words and picture meet in the key space, whether the
picture is of a kind that the model knows at all, and, of a caption that was chosen among several,
whether the others name the same things. Noise, darkness and blur agree with some caption as well as
a photo does, but lie far from all pictures of the background.

    nouns = nouns_of("A man in a red shirt is standing.")     # man, shirt
    chances = model.nouns(noun_features(nouns, seen, others))  # [0.9, 0.6]
    sure_beginnings(chances)                                   # [0.9, 0.54]
"""

import re
from collections import Counter
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np

from streammem.memory.retrieval import content_words, names
from streammem.models.backbones.language import GrowingReply, Replies

CONFIDENCE_FEATURES, NOUN_FEATURES, RERANKING_FEATURES = 4, 5, 2
NEAREST = 10  # background pictures that say whether a picture is of a known kind
RIDGE = 1e-2
NEWTON_STEPS = 30
WHOLE, WHOLE_BY_NOUNS = 0.3, 0.25
LEAST = 0.2
SPOILED = 3  # times that a noun of a spoiled picture counts
OWN_OFFSET = 4  # examples that a noun needs for an offset of its own
_WORD = r"[^\W_]+(?:['-][^\W_]+)*"
# Where a noun phrase of a caption ends; "of" goes on with it.
_ENDS = frozenset(
    "is are was were be and or in on at with by to from into onto over under through near up down "  # noqa: SIM905
    "that who which while as for off out around behind between along next".split()
)
_STOPS = (".", ";", ":", "!", "?")
_ABBREVIATION = re.compile(r"(?:[^\W_]\.)+|(?:mr|mrs|ms|dr|st|vs)\.")
_ARTICLES = frozenset(
    "a an the his her their its another one two three four five some several".split()  # noqa: SIM905
)
# Where a noun phrase of a caption ends for its nouns; "of" and stops end it too.
_NOUN_ENDS = _ENDS | frozenset(
    ". , ; : ! ? of been being inside outside across toward towards against above below beside "  # noqa: SIM905
    "underneath past there this these filled covered dressed".split()
)
_BE = frozenset("is are was were be been being".split())  # noqa: SIM905
# Behind a noun these end its phrase; at the beginning of one they are nouns.
_VERBS = frozenset(
    "sit sits stand stands lie lies ride rides run runs walk walks jump jumps play plays hold "  # noqa: SIM905
    "holds look looks wear wears pose race swim".split()
)
_NOUNS_IN_ING = frozenset(
    "building ceiling clothing icing king painting railing ring string swing thing wedding "  # noqa: SIM905
    "wing".split()
)
_NO_THINGS = frozenset(
    "black white red blue green yellow orange brown pink purple gray grey group top front side "  # noqa: SIM905
    "view piece pile pair couple bunch back middle edge other each air together it him them "
    "large big small little".split()
)


class Noun(NamedTuple):
    """A noun of a caption.

    Attributes:
        word: in small letters.
        end: place in the caption behind it.
    """

    word: str
    end: int


class NounModel(NamedTuple):
    """A logistic fit over ``noun_features``, of captions that were chosen among several.

    Attributes:
        weights: [5].
        bias: the log-odds where all features are 0.
        least: mean probability of a caption's nouns below which a picture most likely shows nothing
            that there are words for.
        whole: confidence below which a caption is cut.
    """

    weights: tuple[float, ...]
    bias: float
    least: float = LEAST
    whole: float = WHOLE_BY_NOUNS

    def __call__(self, seen: np.ndarray) -> np.ndarray:
        """Return the probabilities [N] in (0, 1) that nouns of features [N, 5] are right."""
        return 1 / (1 + np.exp(-(seen @ np.array(self.weights) + self.bias)))


class ConfidenceModel(NamedTuple):
    """A logistic fit over ``confidence_features``.

    Attributes:
        weights: [4].
        bias: the log-odds where all signs are 0.
        least: below it a picture most likely shows nothing that there are words for.
        whole: below it what follows a caption's first phrase is wrong more often than right.
        nouns: how sure each noun of a caption is that was chosen among several; None where it was
            not fitted, and such captions are judged as a whole too.
    """

    weights: tuple[float, ...]
    bias: float
    least: float = LEAST
    whole: float = WHOLE
    nouns: NounModel | None = None

    def __call__(self, seen: np.ndarray) -> float:
        """Return the probability in (0, 1) that a noun of the caption is right."""
        return float(1 / (1 + np.exp(-(seen @ np.array(self.weights) + self.bias))))

    def settings(self) -> dict[str, Any]:
        """Return it as a checkpoint's config.json has it."""
        own = {name: value for name, value in self._asdict().items() if name != "nouns"}
        return own | ({"nouns": self.nouns._asdict()} if self.nouns else {})


def confidence_features(
    pictures: np.ndarray, words: np.ndarray, background: np.ndarray
) -> np.ndarray:
    """Measure what confidence rests on.

    Args:
        pictures: [V, K] unit keys of what is described.
        words: [K] unit key of the caption.
        background: [B, K] unit keys of unrelated pictures, B >= 2.

    Returns:
        [4]: cosine of words and the picture that fits them best; by how many standard deviations
        it exceeds the background's; mean cosine of that picture with the ``NEAREST`` of the
        background, and with all of it.
    """
    pictures, words, background = map(directions, (pictures, words, background))
    fits = pictures @ words
    key, agreement = pictures[fits.argmax()], fits.max()
    chance = background @ words
    like = np.sort(background @ key)
    excess = (agreement - chance.mean()) / max(chance.std(), 1e-6)
    return np.array([agreement, excess, like[-NEAREST:].mean(), like.mean()], np.float64)


def directions(keys: np.ndarray) -> np.ndarray:
    """Leave out the last place of keys [..., K], which holds how little is known of a picture.

    It makes all pictures alike, the spoiled ones most: without it right captions lie above wrong
    ones in 0.87 of pairs, with it in 0.77.
    """
    rest = keys[..., :-1]
    return rest / np.maximum(np.linalg.norm(rest, axis=-1, keepdims=True), 1e-6)


def first_phrase(text: str) -> str:
    """Return a caption up to the end of its first noun phrase, by English function words alone.

    Returns:
        The beginning of the text, with its own spaces; all of it where no second phrase or
        sentence begins.
    """
    words = list(re.finditer(r"\S+", text))
    for before, word in pairwise(words):
        if before[0].endswith(_STOPS) and not _ABBREVIATION.fullmatch(before[0].lower()):
            return text[: before.end() - 1].rstrip()
        if before is words[0]:
            continue
        if before[0].endswith(","):
            return text[: before.end() - 1].rstrip()
        if word[0].lower() in _ENDS and before[0].lower() not in _ENDS:
            return text[: before.end()]
    return text


def nouns_of(text: str) -> list[Noun]:
    """Find the nouns of a caption: the last word of each noun phrase, by function words alone.

    Colours, sizes and words like "group" are no nouns here, nor is what follows "is" without an
    article.

    Returns:
        The nouns in order; the whole text as the only one where there is none.
    """
    found, phrase, after_be = list[Noun](), list[re.Match[str]](), False
    for match in re.finditer(rf"{_WORD}|[.,;:!?]|$", text):
        word = match[0].lower()
        article = word in _ARTICLES
        ends = word in _NOUN_ENDS or (word.endswith("ing") and word not in _NOUNS_IN_ING)
        if word and not (article or ends or (phrase and word in _VERBS)):
            phrase.append(match)
            continue
        if article and len(phrase) > 1:
            phrase.pop()  # before an article without a preposition stands the verb
        if phrase and not after_be:
            noun = Noun(phrase[-1][0].lower(), phrase[-1].end())
            if noun.word not in _NO_THINGS:
                found.append(noun)
        phrase, after_be = [], word in _BE
    return found or [Noun(text, len(text))]


def names_noun(text: str, noun: Noun) -> bool:
    """Return whether one line of a text names a noun, or a kind of it.

    Of a noun like "someone" or "saw", whose word carries no content elsewhere: whether it has it.
    """
    words = content_words(noun.word)
    if words:
        return names(text, words)
    return noun.word in re.findall(_WORD, text.lower())


def noun_features(nouns: Sequence[Noun], seen: np.ndarray, others: Sequence[str]) -> np.ndarray:
    """Measure what the probability of each noun of a caption rests on.

    Args:
        nouns: of the caption, at least one.
        seen: [4] ``confidence_features`` of the caption.
        others: the other captions that were drawn of the same picture, at least one.

    Returns:
        [N, 5]: the share of the others that name the thing, or a kind of it; then ``seen``.
    """
    shares = [np.mean([names_noun(other, noun) for other in others]) for noun in nouns]
    return np.column_stack([shares, np.tile(seen, (len(nouns), 1))])


def sure_beginnings(chances: np.ndarray) -> np.ndarray:
    """Return the probabilities [N] that the first 1 to N nouns are all right, from [N] of each.

    As if each were right by itself: of products with an exponent, and of the least, none was
    likelier on validation photos.
    """
    return np.cumprod(chances)


def fit_confidence(seen: np.ndarray, right: np.ndarray) -> ConfidenceModel:
    """Fit the probability to examples, by ridge logistic regression.

    Args:
        seen: [N, 4] signs.
        right: [N] in [0, 1], the share of each caption's nouns that are right.

    Raises:
        ValueError: fewer than two examples, or all equally right.
    """
    if len(seen) < 2 or np.ptp(right) == 0:
        raise ValueError("confidence: needs examples of captions that are right and that are wrong")
    weights, bias = _logistic(seen, right, np.empty((len(seen), 0)))
    return ConfidenceModel(tuple(map(float, weights)), bias)


def fit_nouns(
    seen: np.ndarray, right: np.ndarray, words: Sequence[str], spoiled: np.ndarray
) -> NounModel:
    """Fit the probability that a noun is right, by ridge logistic regression.

    People leave out of their sentences much that is there, a street more often than a dog. So each
    common noun has an offset of its own, which is then left out: what is learned is when a noun is
    likelier than the same noun elsewhere.

    Args:
        seen: [N, 5] ``noun_features``.
        right: [N] of 0 and 1.
        words: [N] the nouns, alike where they share an offset.
        spoiled: [N] whether the noun is of a picture that shows nothing; it counts ``SPOILED``
            times, and has no offset.

    Raises:
        ValueError: no nouns of photos, or all of them equally right.
    """
    photos = ~spoiled
    if len(seen) < 2 or not photos.any() or np.ptp(right[photos]) == 0:
        raise ValueError("confidence: needs examples of nouns that are right and that are wrong")
    common = [w for w, count in Counter(np.array(words)[photos]).items() if count >= OWN_OFFSET]
    own = ((np.array(words)[:, None] == np.array(common)) & photos[:, None]).astype(float)
    rows = np.repeat(np.arange(len(seen)), np.where(spoiled, SPOILED, 1))
    weights, _ = _logistic(seen[rows], right[rows], own[rows])
    # The bias so that nouns of photos are as likely, in the mean, as they are right.
    score, share = seen[photos] @ weights, right[photos].mean()
    bias = np.log(share / (1 - share)) - score.mean()
    for _ in range(NEWTON_STEPS):
        p = 1 / (1 + np.exp(-(score + bias)))
        bias -= (p.mean() - share) / (p * (1 - p)).mean()
    return NounModel(tuple(map(float, weights)), float(bias))


def _logistic(seen: np.ndarray, right: np.ndarray, offsets: np.ndarray) -> tuple[np.ndarray, float]:
    """Fit right [N] in [0, 1] by seen [N, F] and by offsets [N, G], which are then left out.

    Returns:
        Weights [F], and the bias.
    """
    mean, scale = seen.mean(0), np.maximum(seen.std(0), 1e-9)
    x = np.c_[(seen - mean) / scale, offsets, np.ones(len(seen))]
    held = [RIDGE * len(seen)] * seen.shape[1] + [1.0] * offsets.shape[1] + [0.0]
    ridge, w = np.diag(held), np.zeros(x.shape[1])
    for _ in range(NEWTON_STEPS):
        p = 1 / (1 + np.exp(-x @ w))
        slope = x.T @ (p - right) + ridge @ w
        w -= np.linalg.solve((x * (p * (1 - p))[:, None]).T @ x + ridge, slope)
    weights = w[: seen.shape[1]] / scale
    return weights, float(w[-1] - weights @ mean)


class Reranker(NamedTuple):
    """A linear score of a caption's features; the caption of the highest score is chosen.

    Attributes:
        weights: [2], of ``reranking_features``.
        candidates: captions drawn for each picture, >= 1.
        naming: of how many named things are there, see ``protocols.NamingEncoder``.
    """

    weights: tuple[float, ...]
    candidates: int
    naming: float = 0.0

    def __call__(self, seen: np.ndarray, named: np.ndarray | float = 0.0) -> int:
        """Return which of N captions is best; the first of equals.

        Args:
            seen: [N, 2] their features.
            named: [N] how many of the things that each names are there, less those that are not.
        """
        return int((seen @ np.array(self.weights) + self.naming * np.asarray(named)).argmax())


def reranking_features(
    log_probs: Sequence[float], words: np.ndarray, pictures: np.ndarray
) -> np.ndarray:
    """Compute the features of each of several captions of one picture.

    Args:
        log_probs: mean log-probability of a token of each of N captions.
        words: [N, K] unit keys of the captions.
        pictures: [V, K] unit keys of what they describe; the one that fits best counts.

    Returns:
        [N, 2]: cosine of words and picture; log-probability.
    """
    agreement = (directions(words) @ directions(pictures).T).max(1)
    return np.column_stack([agreement, log_probs]).astype(np.float64)


def best_reply(
    reranker: Reranker | None,
    sentence_keys: Callable[[Sequence[str]], np.ndarray],
    replies: Replies,
    pictures: np.ndarray,
    naming: Callable[[Sequence[str]], np.ndarray] | None = None,
) -> tuple[GrowingReply, np.ndarray | None]:
    """Choose the reply that fits a picture best; the first where there is no choice.

    Args:
        reranker: how; None takes the first.
        sentence_keys: maps texts to unit keys [N, K].
        replies: at least one; of several, each with the log-probabilities of its tokens.
        pictures: [V, K] unit keys of what they describe, V >= 1.
        naming: tells of N texts how many of the things that each names are there, less those that
            are not, [N]; None where nothing does.

    Returns:
        The reply, and the unit key [K] of its text where it was needed for the choice.
    """
    if len(replies) == 1 or reranker is None:
        return replies[0], None
    texts = list(dict.fromkeys(reply.text for reply in replies))  # replies may be alike
    own = dict(zip(texts, sentence_keys(texts), strict=True))
    keys = np.stack([own[reply.text] for reply in replies])
    log_probs = [float(np.mean(reply.log_probs)) for reply in replies]
    named = dict(zip(texts, naming(texts), strict=True)) if naming and reranker.naming else {}
    best = reranker(
        reranking_features(log_probs, keys, pictures),
        np.array([named.get(reply.text, 0.0) for reply in replies]),
    )
    return replies[best], keys[best]


def fit_reranker(
    seen: Sequence[np.ndarray], worth: Sequence[np.ndarray], candidates: int
) -> Reranker:
    """Fit a reranker to captions whose worth is known, by ridge regression.

    Only differences between captions of one picture count, as only they are chosen between.

    Args:
        seen: features [N, 2] of each picture's captions.
        worth: [N] of each picture's captions, such as their CIDEr-D.
        candidates: see ``Reranker``.

    Raises:
        ValueError: no picture has captions of different features.
    """
    x = np.concatenate([rows - rows.mean(0) for rows in seen])
    y = np.concatenate([values - values.mean() for values in worth])
    scale = x.std(0)
    if not scale.any():
        raise ValueError("choice: needs captions that differ in their features")
    scale[scale == 0] = 1.0
    x = x / scale
    weights = (
        np.linalg.solve(x.T @ x + RIDGE * len(x) * np.eye(RERANKING_FEATURES), x.T @ y) / scale
    )
    return Reranker(tuple(float(weight) for weight in weights), candidates)
