"""How much code a reader meets: files, functions and lines on the way of a frame and a question.

Every Python call is recorded, in every thread, on a film of four scenes that it makes (20 s,
640x360), after a first run that is not counted, so that no import is. Only files of ``streammem/``
count. A function is what has a name: comprehensions and lambdas belong to the function they stand
in. Lines are those of the visited functions, docstrings included. A change of file is a call whose
caller, the nearest one of ``streammem/``, stands in another file.

- **frame**: ``watch`` of the file into a memory on disk, from the call to the first printed
  caption, opening included.
- **frame, running**: the same between the first closed scene and the second printed caption, when
  nothing is opened any more.
- **closing push**: the last ``Session.push`` that closes a scene; without a folder, and on disk.
- **question**: ``Session.ask`` of scenes without captions, three times: a "when" of what was not
  seen, one of what was (the model's own caption), and a question that is answered in words. The
  goal holds for the one of most files. The second is asked once more, when its scenes have
  captions, as those have that were watched.

The film shows waves of colour, of which no caption is sure: captions of any confidence are kept.
``-v`` lists what was visited, in order of the first visit, and the changes of file of the closing
push.
"""

import argparse
import ast
import inspect
import io
import itertools
import json
import re
import sys
import tempfile
import threading
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass, field
from pathlib import Path
from types import CodeType, FrameType

import streammem
from benchmarks.clips import write
from benchmarks.machine import machine
from benchmarks.stream import patterns
from streammem.commands.opening import quiet_libraries
from streammem.output.results import Results
from streammem.types import Caption, Frame, Segment

PACKAGE = Path(streammem.__file__).parent
README = PACKAGE.parent / "README.md"
SCENES, SCENE_S, FPS, SIDE = 4, 5.0, 2.0, 640
NOT_SEEN, IN_WORDS = "When does a dog swim?", "What happens?"
LEAST_CONFIDENCE = 1e-6  # above 0: confidence is computed, and the captions are kept
TOP_LEVEL = {"__init__.py", "__main__.py", "cli.py", "config.py", "errors.py", "types.py"}
PROBED = {"source", "model", "session"}
# There a "model" is a network of another library.
FOREIGN_MODELS = ("models/backbones/", "training/")
# There they are words of questions and of answers.
WORD_LISTS = (
    "memory/retrieval.py",
    "qa/question.py",
    "training/phrasings.py",
    "evaluation/rereading.py",
)
VAGUE = re.compile(r"\b(whoever|nobody|somebody)\b", re.IGNORECASE)


@dataclass(frozen=True)
class Call:
    """One call of a function of the package; ``caller`` is None at the root of a thread."""

    callee: CodeType
    caller: CodeType | None

    @property
    def changes_file(self) -> bool:
        return self.caller is not None and self.caller.co_filename != self.callee.co_filename


@dataclass
class Trace:
    """The calls of one path, in order; of several threads as they came."""

    calls: list[Call] = field(default_factory=list)

    @property
    def functions(self) -> dict[str, dict[CodeType, int]]:
        """Lines of each visited function, by file, both in order of the first visit."""
        found: dict[str, dict[CodeType, int]] = defaultdict(dict)
        for code in dict.fromkeys(call.callee for call in self.calls):
            found[place(code)][code] = len(inspect.getsourcelines(code)[0])
        return dict(found)

    def figures(self) -> dict[str, int]:
        functions = self.functions
        return {
            "files": len(functions),
            "functions": sum(map(len, functions.values())),
            "lines": sum(sum(lines.values()) for lines in functions.values()),
            "calls": len(self.calls),
            "changes": sum(call.changes_file for call in self.calls),
        }


@contextmanager
def traced() -> Iterator[Trace]:
    """Record the calls of this thread and of those that start meanwhile."""
    trace, counted = Trace(), {}

    def counts(code: CodeType) -> bool:
        if code not in counted:
            inside = Path(code.co_filename).is_relative_to(PACKAGE)
            counted[code] = inside and not code.co_name.startswith("<")
        return counted[code]

    def profile(frame: FrameType, event: str, argument: object) -> None:
        if event == "call" and counts(frame.f_code):
            above = frame.f_back
            while above is not None and not counts(above.f_code):
                above = above.f_back
            trace.calls.append(Call(frame.f_code, above.f_code if above else None))

    threading.setprofile(profile)
    sys.setprofile(profile)
    try:
        yield trace
    finally:
        sys.setprofile(None)
        threading.setprofile(None)


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks trace", description=__doc__)
    parser.add_argument("--model", default="streammem-tiny")
    parser.add_argument("-v", "--verbose", action="store_true", help="list what was visited")
    options = parser.parse_args(argv)
    quiet_libraries()
    with tempfile.TemporaryDirectory() as scratch:
        traces = paths(streammem.load(options.model), Path(scratch))
    questions = [name for name in traces if name.startswith("question")]
    longest = max(questions, key=lambda name: traces[name].figures()["files"])
    goals = {
        "frame": {"files": 20, "lines": 1200},
        "closing push": {"changes": 12},
        longest: {"files": 14},
    }
    figures = {name: trace.figures() for name, trace in traces.items()}
    print(f"{'':22}" + "".join(f"{column:>11}" for column in figures["frame"]) + "   goal")
    for name, row in figures.items():
        goal = ", ".join(f"{key} <= {most}" for key, most in goals.get(name, {}).items())
        print(f"{name:22}" + "".join(f"{value:11,}" for value in row.values()) + f"   {goal}")
    found = in_source()
    for name, (goal, places) in found.items():
        print(f"{name:44}{len(places):11,}   <= {goal}")
    if options.verbose:
        show(traces, {name: places for name, (_, places) in found.items() if name != "README"})
    sizes = {name: len(places) for name, (_, places) in found.items()}
    print(json.dumps({"benchmark": "trace", **figures, "source": sizes, "machine": machine()}))
    return 0


def paths(model: object, folder: Path) -> dict[str, Trace]:
    """Trace each path of a model; what is imported or opened once is so before.

    Args:
        model: what ``streammem.load`` gives.
        folder: for the film and the memories.
    """
    video = folder / "film.mp4"
    scenes = itertools.islice(patterns(SCENE_S), SCENES)
    write(video, itertools.chain.from_iterable(scenes))
    config = streammem.SessionConfig(min_confidence=LEAST_CONFIDENCE)
    frames = list(streammem.open_source(video, fps=FPS, max_side=SIDE))
    traces: dict[str, Trace] = {}
    for round_name in ("warm", "measured"):
        with streammem.Session(model, config, folder / f"{round_name} watched") as session:
            traces["frame"], traces["frame, running"], first = _watched(session, video)

        with streammem.Session(model, config) as session:
            traces["closing push"] = _pushed(session, frames)

        seen = first.text.rstrip(".")
        questions = {
            "question, not seen": NOT_SEEN,
            "question, seen": f"When is there {seen[:1].lower()}{seen[1:]}?",
            "question, in words": IN_WORDS,
        }
        for name, question in questions.items():
            with streammem.Session(model, config, folder / f"{round_name} {name}") as session:
                traces["closing push, on disk"] = _pushed(session, frames)
                session.flush()
                with traced() as traces[name]:
                    answer = session.ask(question)
                if name == "question, seen":
                    with traced() as traces["question, captioned"]:
                        session.ask(question)
            if round_name == "measured" and answer.seen == (question == NOT_SEEN):
                print(f"{name}: {question!r}: seen is {answer.seen}", file=sys.stderr)
    return traces


def _pushed(session: streammem.Session, frames: Sequence[Frame]) -> Trace:
    """Push frames; return the way of the last push that closed a scene."""
    closing = None
    for frame in frames:
        with traced() as push:
            closed = session.push(frame)
        if closed:
            closing = push
    assert closing, "no push closed a scene"
    return closing


def _watched(session: streammem.Session, video: Path) -> tuple[Trace, Trace, Caption]:
    """Watch a film as a command does.

    Returns:
        The way to the first printed caption, the way from the first closed scene to the second
        printed caption, and the first caption.
    """
    captions: list[Caption] = []
    first = running = None
    with redirect_stdout(io.StringIO()), traced() as trace:
        results, began = Results("text", None), 0
        for event in streammem.watch(session, video):
            results.write(event)
            if isinstance(event, Segment) and not began:
                began = len(trace.calls)
            if isinstance(event, Caption):
                captions.append(event)
                first = first or Trace(trace.calls[:])
                if len(captions) == 2:
                    running = Trace(trace.calls[began:])
    assert first and running, "fewer than two captions"
    return first, running, captions[0]


def in_source() -> dict[str, tuple[int, Sequence[str]]]:
    """Return, by what is looked for, the most that there should be, and where it was found."""
    stray = sorted(p.name for p in PACKAGE.glob("*.py") if p.name not in TOP_LEVEL)
    probes, vague = [], []
    for path in sorted(PACKAGE.rglob("*.py")):
        name, text = str(path.relative_to(PACKAGE)), path.read_text(encoding="utf-8")
        lines = text.splitlines()
        if name not in WORD_LISTS:
            vague += [f"{name}:{n}: {s.strip()}" for n, s in enumerate(lines, 1) if VAGUE.search(s)]
        if not name.startswith(FOREIGN_MODELS):
            numbers = [node.lineno for node in ast.walk(ast.parse(text)) if _probes(node)]
            probes += [f"{name}:{n}: {lines[n - 1].strip()}" for n in sorted(numbers)]
    return {
        "modules at the top level beside the six": (0, stray),
        "getattr, hasattr on source, model, session": (0, probes),
        "lines with whoever, nobody, somebody": (0, vague),
        "README": (120, README.read_text(encoding="utf-8").splitlines()),
    }


def _probes(node: ast.AST) -> bool:
    """Whether it asks a source, a model or a session, or a part of one, for what it may lack."""
    if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.args):
        return False
    parts = re.split(r"\W", ast.unparse(node.args[0]))
    asked = {part.strip("_") for part in parts}
    return node.func.id in ("getattr", "hasattr") and bool(asked & PROBED)


def place(code: CodeType) -> str:
    return str(Path(code.co_filename).relative_to(PACKAGE))


def show(traces: dict[str, Trace], found: dict[str, Sequence[str]]) -> None:
    """List visited files with their functions in order; then changes of file; then lines."""
    for name, trace in traces.items():
        print(f"\n{name}")
        for file, functions in trace.functions.items():
            names = ", ".join(f"{code.co_qualname} {n}" for code, n in functions.items())
            print(f"  {file} {sum(functions.values())}: {names}")
    print("\nclosing push, changes of file")
    for call in traces["closing push"].calls:
        if call.changes_file and call.caller:
            above, below = call.caller, call.callee
            print(f"  {place(above)}:{above.co_qualname} -> {place(below)}:{below.co_qualname}")
    for name, places in found.items():
        print(f"\n{name}", *places, sep="\n  ")
