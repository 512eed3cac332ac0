"""Questions of what was said: which sentence answers, in whose words, and when.

    asked = read_said("When did they mention the harbour?")       # kind "when", topic "the harbour"
    quotes = ranked(sentences(clips), asked.topic)                # the best first
    text_of(asked, quotes[:4], named=False)                       # 'at 12:04.0: “Sail for ...”'

The answer is a sentence as it was said, found by the words that it shares with the question, or by
its meaning where none has them all; the language model has no part in it.
"""

import math
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np

from streammem.memory.entry import Entry
from streammem.memory.retrieval import Clip, content_words, stem
from streammem.models.protocols import TextEncoder
from streammem.qa.question import SaidQuestion
from streammem.qa.timeline import oldest_first
from streammem.types import Note, clock

SAID = 0.5  # score of a sentence from which on it is about the topic
ALL_WORDS = 0.95  # score from which on words alone decide
NEAR_BEST = 0.2  # of the best one's score: further ones this close are quoted too
NEAR_MEANING = 0.05  # likewise of scores by meaning, which lie closer together
# Cosine of a question and a sentence from which on they mean the like; see docs/research/speech.md.
LIKE = 0.45
MOST_COMPARED = 2000  # sentences whose meanings are compared for a question; one takes 3 ms, once
MAX_GAP_S, MAX_CUES, MAX_CHARS = 1.5, 4, 300  # of a sentence that goes on over cues
MAX_COUNTED = 20  # times that are listed
NOT_SAID = "not said, as far as the words are known"
NOTHING_SAID = "nothing was said then, as far as the words are known"
NO_WORDS = "what was said is not known: no subtitles or speech were read"

_SPEAKER = re.compile(r"(?:-\s*)?(?:\[([^\]]{1,30})\]:?|([^\W\d_][^:!?.]{0,29}):)\s+\S")
_ENDS = re.compile(r"[.!?…♪][\"'”’)\]]*$|[。！？]$")  # noqa: RUF001, as they are written


@dataclass(frozen=True, slots=True)
class Quote:
    """A sentence that was said, over one cue or several.

    Attributes:
        entry: the row that its first cue belongs to.
        notes: its cues, in time order.
        score: in [0, 1], the share of the topic's words that it has, rare ones count more; or how
            near its meaning is.
        at: seconds; the start of the first of these words in the cue that has most of them; of
            that cue, where the times of words are not known.
    """

    entry: Entry
    notes: tuple[Note, ...]
    score: float = 0.0
    at: float = 0.0

    @property
    def text(self) -> str:
        """The words."""
        return " ".join(note.text for note in self.notes)

    @property
    def start(self) -> float:
        """Seconds."""
        return self.notes[0].start

    @property
    def end(self) -> float:
        """Seconds."""
        return max(note.end for note in self.notes)

    @property
    def speaker(self) -> str | None:
        """Who says it, as the subtitles name them (``ANN: Come in``, ``[Ann] Come in``)."""
        found = _SPEAKER.match(self.text)
        return (found[1] or found[2]).strip() if found else None


def sentences(clips: Sequence[Clip]) -> list[Quote]:
    """Return what was said within clips, sentence by sentence, each source in time order."""
    quotes: list[Quote] = []
    for clip in clips:
        for note in clip.entry.notes:
            if note.kind != "speech":
                continue
            if not (note.start < clip.end and (note.end > clip.start or note.start >= clip.start)):
                continue
            before = quotes[-1] if quotes else None
            if before and before.entry.source == clip.entry.source and _goes_on(before, note):
                quotes[-1] = Quote(before.entry, (*before.notes, note), at=before.at)
            else:
                quotes.append(Quote(clip.entry, (note,), at=note.start))
    return quotes


def ranked(quotes: Sequence[Quote], topic: str) -> list[Quote]:
    """Return the sentences that share words with a topic, best first.

    Of equals the one that has more of its words side by side, then the earlier one.
    """
    words = content_words(topic)
    found = [content_words(quote.text) for quote in quotes]
    frequency = Counter(word for each in found for word in each & words)
    weight = {word: math.log(1 + len(quotes) / max(0.5, frequency[word])) for word in words}
    total = sum(weight.values())
    phrase = _plain(topic)
    scored = []
    for quote, own in zip(quotes, found, strict=True):
        score = sum(weight[word] for word in words & own) / total if total else 0.0
        if phrase and _has(_plain(quote.text), phrase):
            score = 1.0
        if score > 0:
            scored.append(Quote(quote.entry, quote.notes, score, first_said(quote.notes, words)))
    pairs = set(pairwise(_stems(topic)))
    return sorted(  # stable
        scored, key=lambda quote: (-quote.score, -len(pairs & set(pairwise(_stems(quote.text)))))
    )


def sentence_of(entry: Entry, words: frozenset[str]) -> Quote | None:
    """Return what was said in a row that was found: the sentence that shares most with a query.

    None where several share none of its words: it is not known which of them was near then.
    """
    quotes = sentences([Clip(entry, -math.inf, math.inf)])
    shared = [len(words & content_words(quote.text)) for quote in quotes]
    is_clear = any(shared) or len(quotes) == 1
    return quotes[shared.index(max(shared))] if is_clear else None


class Meanings:
    """Ranks sentences by their meaning; those of the last questions are kept, which saves time.

    Args:
        encoder: maps sentences to meanings.
    """

    def __init__(self, encoder: TextEncoder) -> None:
        self._encoder = encoder
        self._rows: dict[str, np.ndarray] = {}  # by sentence, at most 2 x MOST_COMPARED

    def ranked(self, quotes: Sequence[Quote], topic: str, question: str) -> list[Quote]:
        """Return the sentences, nearest in meaning first; of more than MOST_COMPARED some.

        Args:
            quotes: at least one.
            topic: of the question; not empty.
            question: the whole of it, which tells what "it" is in "about the car and its colour".

        Returns:
            With scores from SAID on at a cosine of LIKE.
        """
        # 1. Of many, those of the rows whose keys are nearest.
        if len(quotes) > MOST_COMPARED:
            key = self._encoder.sentence_keys([topic])[0]
            near = {q.entry.segment: (q.entry.note_keys @ key).max(initial=-1) for q in quotes}
            quotes = sorted(quotes, key=lambda quote: -near[quote.entry.segment])[:MOST_COMPARED]
        # 2. Meanings that are not known yet.
        texts = [quote.text for quote in quotes]
        new = [text for text in dict.fromkeys(texts) if text not in self._rows]
        if len(self._rows) + len(new) > 2 * MOST_COMPARED:
            self._rows = {text: self._rows[text] for text in texts if text in self._rows}
        if new:
            rows = self._encoder.sentence_meanings(new).astype(np.float16)
            self._rows |= dict(zip(new, rows, strict=True))
        # 3. Their cosines with topic and question, as scores.
        asked = self._encoder.sentence_meanings([topic, question]).sum(axis=0)
        asked /= max(1e-9, float(np.linalg.norm(asked)))
        cosines = np.stack([self._rows[text] for text in texts]) @ asked
        scores = np.interp(cosines, [0.0, LIKE, 1.0], [0.0, SAID, 1.0])
        words = content_words(topic)
        return [
            replace(quotes[i], score=float(scores[i]), at=first_said(quotes[i].notes, words))
            for i in np.argsort(-scores, kind="stable").tolist()
        ]


def first_said(notes: Sequence[Note], words: frozenset[str]) -> float:
    """Return when the first of these words is said, in the cue that has most of them."""
    note = max(notes, key=lambda note: len(words & content_words(note.text)))  # the first of equals
    spoken = note.text.split()
    if len(note.word_starts) != len(spoken):
        return note.start
    timed = zip(note.word_starts, spoken, strict=True)
    return next((at for at, word in timed if words & content_words(word)), note.start)


def by_speaker(quotes: Sequence[Quote], speaker: str) -> list[Quote]:
    """Return what a speaker says, where the subtitles name them; otherwise everything."""
    name = _plain(speaker)
    own = [q for q in quotes if name and q.speaker and _has(_plain(q.speaker), name)]
    return own or list(quotes)


def text_of(asked: SaidQuestion, quotes: Sequence[Quote], more: int = 0, *, named: bool) -> str:
    """Answer by quotes.

    Args:
        asked: the question.
        quotes: of the answer, best first; none where it was not said.
        more: further ones that are not shown.
        named: name each quote's source.
    """
    if not quotes:
        return "no: " + NOT_SAID if asked.kind == "whether" else NOT_SAID

    def at(quote: Quote) -> str:
        return clock(quote.at) + (f" in {quote.entry.source}" if named else "")

    rest = f"; and {more} more" if more else ""
    if asked.kind == "count":
        num = len(quotes) + more
        times = ", ".join(at(quote) for quote in quotes[:MAX_COUNTED])
        return f"{'once' if num == 1 else f'{num} times'}: {times}{rest}"
    if asked.kind == "when":
        in_order = oldest_first(sorted(quotes, key=lambda q: q.at), lambda quote: quote.entry)
        return "; ".join(f"at {at(quote)}: “{quote.text}”" for quote in in_order) + rest
    if asked.kind == "who":
        parts = [
            f"{quote.speaker or 'the speaker is not named'}, at {at(quote)}: “{quote.text}”"
            for quote in quotes
        ]
        return "; ".join(parts) + rest
    said = "; ".join(f"“{quote.text}” (said at {at(quote)})" for quote in quotes) + rest
    return f"yes: {said}" if asked.kind == "whether" else said


def typical(parts: Sequence[Sequence[Quote]], most: int) -> list[list[Quote]]:
    """Choose of what is said in each part the sentences that are typical of it.

    A word weighs by how many different sentences of the part have it, and by how few parts do; a
    sentence by its words, less where it is long, and by none that a chosen one has.

    Args:
        parts: sentences of each, in time order.
        most: of each.

    Returns:
        For each part at most so many, in time order; none that only repeats others.
    """
    words = [[content_words(quote.text) for quote in part] for part in parts]
    spread = Counter(word for part in words for word in frozenset().union(*part))
    chosen = []
    for part, own in zip(parts, words, strict=True):
        counts = Counter(word for each in set(own) for word in each)
        weight = {
            word: (1 + math.log(count)) * (0.01 + math.log(len(parts) / spread[word]))
            for word, count in counts.items()
        }
        places, new = list[int](), [set(each) for each in own]
        for _ in range(min(most, len(part))):
            scores = [
                sum(weight[word] for word in left) / math.sqrt(4 + len(each))
                for left, each in zip(new, own, strict=True)
            ]
            best = max(range(len(part)), key=scores.__getitem__)
            if scores[best] <= 0:
                break
            places.append(best)
            for left in new:
                left -= own[best]
        chosen.append([part[place] for place in sorted(places)])
    return chosen


def excerpt(notes: Sequence[Note], words: frozenset[str], most: int) -> tuple[Note, ...]:
    """Return notes of at most ``most`` characters together, in time order.

    Whole ones, unless the first that is taken is longer; those that share words with a question
    are taken first.
    """
    order = sorted(range(len(notes)), key=lambda i: -len(words & content_words(notes[i].text)))
    chosen, size = set[int](), 0
    for i in order:
        if size + len(notes[i].text) + 1 <= most or not chosen:
            chosen.add(i)
            size += len(notes[i].text) + 1
    if size > most + 1:  # a single one
        return tuple(replace(notes[i], text=notes[i].text[:most], word_starts=()) for i in chosen)
    return tuple(notes[i] for i in sorted(chosen))


# -- private --


def _goes_on(before: Quote, note: Note) -> bool:
    last = before.notes[-1]
    return not (
        _ENDS.search(last.text)
        or note.start - last.end > MAX_GAP_S
        or note.start < last.start
        or len(before.notes) >= MAX_CUES
        or len(before.text) + len(note.text) > MAX_CHARS
        or note.text.startswith(("-", "–", "—"))  # noqa: RUF001, marks of another speaker
        or _SPEAKER.match(note.text)
    )


def _stems(text: str) -> list[str]:
    return [stem(word) for word in _plain(text).split()]


def _plain(text: str) -> str:
    return " ".join(re.findall(r"[^\W_]+", text.lower()))


def _has(text: str, phrase: str) -> bool:
    """Return whether a text holds a phrase: as whole words, in ASCII; otherwise anywhere."""
    if phrase.isascii():
        return f" {phrase} " in f" {text} "
    return phrase in text
