"""Films of clips and photos, watched once and asked as often as one likes.

- Each film of a folder of ``streammem eval make`` is watched and captioned into a memory of its
  own; those that are there already stay, so that an interrupted run goes on.
- Its questions are answered as ``Session.ask`` answers them, each from the rows that had closed by
  its time. By half and operator: right; right of what is there; refused though there; claimed
  though absent; whether evidence holds the truth, and holds it where the answer is wrong. Standard
  errors take questions about one thing as one.
- Controls: ``--other``, the memory of the other half's film of the same number; ``--context``:
  32 scenes spread evenly (``uniform``), captions as text, the question alone (``blind``). A memory
  that is closed has nothing on screen: ``now`` refuses everything. Answers in the model's words can
  be right about ``exists`` alone, since no time is read out of words.

``--limit`` draws so many questions of a film. ``--without-names`` reads no names off keys;
``--log`` keeps every answer.
"""

import argparse
import json
import shutil
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.machine import machine
from streammem import load
from streammem.engine.session import Session
from streammem.engine.watch import watch
from streammem.evaluation.answers import is_right
from streammem.evaluation.asking import UNIFORM
from streammem.evaluation.film_files import LIST
from streammem.evaluation.films import scenes_cited
from streammem.evaluation.scoring import risk_coverage
from streammem.evaluation.timelines import TimedQuestion
from streammem.memory.retrieval import EVERYTHING, Window
from streammem.models.protocols import ComposedModel
from streammem.qa.answerer import AnswerConfig, Answerer
from streammem.qa.question import Present
from streammem.types import Segment, TimeSpan

SHARES = ("right", "right, there", "refused", "claimed", "evidence", "evidence, wrong")
BATCH = 64  # questions that are read together
CONTEXTS = {
    "memory": AnswerConfig(),
    "captions": AnswerConfig(context="captions"),
    "uniform": AnswerConfig(context="uniform", passages=UNIFORM),
    "now": AnswerConfig(context="now"),
    "blind": AnswerConfig(),  # of an empty memory
}
ENDED_S = 0.1  # a row that ends so much after a question had closed


def watched(model: Any, film: Path, memory: Path) -> None:
    """Watch and caption a film into a memory, unless that was done."""
    done = memory.with_suffix(".watched")
    if done.exists():
        return
    shutil.rmtree(memory, ignore_errors=True)  # of a run that was interrupted
    with Session(model, memory=memory) as session:
        for event in watch(session, str(film)):
            if isinstance(event, Segment):
                print(f"  {film.name}: {event.end:.0f} s", flush=True)
    done.touch()


class ReadAhead:
    """The text encoder of a model, which has read all questions in batches."""

    def __init__(self, model: Any, questions: Sequence[str]) -> None:
        self.inner = model.text_encoder
        self.background, self.null = self.inner.background, self.inner.null
        texts = sorted(set(questions), key=len)
        blocks = [texts[i : i + BATCH] for i in range(0, len(texts), BATCH)]
        self.readings = {
            text: reading
            for block in blocks
            for text, reading in zip(block, self.inner.read_questions(block), strict=True)
        }
        anchors = {a for r in self.readings.values() for a in (r.anchor, r.second) if a}
        every = sorted(anchors, key=len)
        self.keys: dict[str, np.ndarray] = {}
        for i in range(0, len(every), BATCH):
            block = every[i : i + BATCH]
            self.keys |= dict(zip(block, self.inner.sentence_keys(block), strict=True))

    def read_question(self, question: str) -> Any:
        if question not in self.readings:
            self.readings[question] = self.inner.read_question(question)
        return self.readings[question]

    def sentence_keys(self, sentences: Sequence[str]) -> np.ndarray:
        if any(sentence not in self.keys for sentence in sentences):
            return np.asarray(self.inner.sentence_keys(sentences))
        return np.stack([self.keys[sentence] for sentence in sentences])

    def sentence_meanings(self, sentences: Sequence[str]) -> np.ndarray:
        return np.asarray(self.inner.sentence_meanings(sentences))

    def name_readout(self, description: str) -> Any:
        return self.inner.name_readout(description)


class Wordless:
    """A generator that writes nothing: the words of a control are not scored, and take seconds."""

    def __init__(self, inner: Any) -> None:
        self.reads, self.decoding, self.batches = inner.reads, inner.decoding, inner.batches

    def answer_prompt(self, items: object, question: str) -> list[str]:
        return []

    def stream(self, prompt: object, decoding: object) -> Iterator[str]:
        return iter(())


class Described:
    """Captions nothing more: a film's scenes were captioned while it was watched."""

    def describe(self, entries: object) -> None:
        """Do nothing."""


def asked(
    model: Any, memory: Path, row: dict[str, Any], context: str = "memory", limit: int | None = None
) -> list[dict[str, Any]]:
    """Ask a memory the questions of a film, or a sample of them; return a line an answer."""
    edges = np.cumsum([0.0, *(scene["end"] - scene["start"] for scene in row["scenes"])])
    lines = []
    questions = row["questions"]
    if limit is not None:
        order = np.random.default_rng(0).permutation(len(questions))[:limit]
        questions = [questions[i] for i in sorted(order)]
    encoder = ReadAhead(model, [fields["text"] for fields in questions])
    writer = model.answer_generator if context == "memory" else Wordless(model.answer_generator)
    reader = ComposedModel.of(model, text_encoder=encoder, answer_generator=writer)
    blind = context == "blind"
    with Session(model) if blind else Session(model, memory=memory, read_only=True) as session:
        answerer = Answerer(reader, session.memory, CONTEXTS[context], Described())
        ends = np.array([entry.end for entry in session.memory.entries()])
        for fields in questions:
            question = TimedQuestion(**{**fields, "gold": tuple(fields["gold"])})
            if question.operator == "said":
                continue
            within = EVERYTHING
            if question.time is not None:
                closed = ends[ends <= question.time + ENDED_S]
                within = Window(TimeSpan(0.0, float(closed.max(initial=0.0))))
            answerer.turns.clear()
            present = Present((), 0, torch.zeros(0))
            answer = answerer.ask(question.text, present, within=within)
            ranked = sorted(answer.evidence, key=lambda item: -item.score)
            cited = scenes_cited(edges, [(item.start, item.end) for item in ranked])
            gold = set(question.gold)
            lines.append({
                "film": row["film"], "half": row["half"], "operator": question.operator,
                "text": question.text, "gold": list(gold), "common": question.common,
                "later": question.later, "time": question.time,
                "thing": encoder.read_question(question.text).anchor or question.text,
                "answer": answer.text, "method": answer.method, "seen": answer.seen,
                "right": is_right(question, answer, set(cited), edges),
                "evidence": bool(gold & set(cited)), "cited": cited,
                "score": ranked[0].score if ranked else 0.0,
                "matched": ranked[0].matched if ranked else None,
                "captions": [item.caption for item in ranked[:4]],
            })  # fmt: skip
    return lines


def share(hits: Sequence[bool], clusters: Sequence[object]) -> tuple[float, float] | None:
    """Return a mean and its standard error, with questions of one cluster as one."""
    if not hits:
        return None
    mean = float(np.mean(hits))
    sums: dict[object, float] = defaultdict(float)
    for hit, cluster in zip(hits, clusters, strict=True):
        sums[cluster] += hit - mean
    few = len(sums) / max(1, len(sums) - 1)
    return mean, float(np.sqrt(few * sum(total**2 for total in sums.values()))) / len(hits)


def shares(lines: Sequence[dict[str, Any]]) -> list[tuple[float, float] | None]:
    """Return the figures of ``SHARES``."""
    there = [line for line in lines if line["gold"]]
    absent = [line for line in lines if not line["gold"]]
    wrong = [line for line in there if not line["right"]]
    each = [
        ([line["right"] for line in lines], lines),
        ([line["right"] for line in there], there),
        ([not line["seen"] for line in there], there),
        ([line["seen"] for line in absent], absent),
        ([line["evidence"] for line in there], there),
        ([line["evidence"] for line in wrong], wrong),
    ]
    return [share(hits, [line["thing"] for line in of]) for hits, of in each]


def printed(title: str, lines: Sequence[dict[str, Any]]) -> None:
    """Print a table by operator."""
    print(f"\n{title}\n| | questions | {' | '.join(SHARES)} |\n|{'---|' * (len(SHARES) + 2)}")
    groups: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for line in lines:
        groups[line["operator"]].append(line)
        groups["everyday things" if line["common"] else "descriptions"].append(line)
        groups["all"].append(line)
    for name, group in groups.items():
        cells = [f"{f[0]:.2f} ± {f[1]:.2f}" if f else "-" for f in shares(group)]
        print(f"| {name} | {len(group)} | {' | '.join(cells)} |")
    curve = risk_coverage([line["score"] for line in lines], [line["right"] for line in lines])
    tenths = [curve[max(0, round(len(curve) * n / 10) - 1)][1] for n in range(1, 11)]
    print("wrong, of the surest tenth, two tenths ... all:", " ".join(f"{r:.2f}" for r in tenths))


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks films", description=__doc__)
    parser.add_argument("folder", type=Path, help="of films, as streammem eval make makes it")
    parser.add_argument("--memories", type=Path, help="keeps them; by default the folder")
    parser.add_argument("--model", default="streammem-tiny")
    parser.add_argument("--half", choices=("fit", "report"), help="films of one half alone")
    parser.add_argument("--only", metavar="FILM", help="one film")
    parser.add_argument("--without-names", action="store_true")
    parser.add_argument("--context", choices=CONTEXTS, default="memory")
    parser.add_argument("--limit", type=int, metavar="N", help="questions of a film, drawn")
    parser.add_argument("--other", action="store_true", help="ask the other half's memories")
    parser.add_argument("--watch", action="store_true", help="watch, and ask nothing")
    parser.add_argument("--log", type=Path, help="a JSON line an answer")
    options = parser.parse_args(arguments)
    model: Any = load(options.model)
    if options.without_names:
        model = replace(model, names=None)
    memories = options.memories or options.folder
    memories.mkdir(parents=True, exist_ok=True)
    rows = [json.loads(line) for line in (options.folder / LIST).read_text().splitlines()]
    rows = [
        r for r in rows if options.half in (None, r["half"]) and options.only in (None, r["film"])
    ]
    lines: list[dict[str, Any]] = []
    for row in rows:
        other = {"fit": "report", "report": "fit"}[row["half"]]
        name = row["film"].replace(row["half"], other) if options.other else row["film"]
        memory = (memories / name).with_suffix(".memory")
        watched(model, options.folder / name, memory)
        if not options.watch:
            lines += asked(model, memory, row, options.context, options.limit)
    if options.log:
        options.log.write_text("".join(json.dumps(line) + "\n" for line in lines))
    for half in ("fit", "report"):
        if own := [line for line in lines if line["half"] == half]:
            printed(f"{half}, {options.context}{', the other half' * options.other}", own)
    print(json.dumps(machine()))
    return 0
