"""Question files of benchmarks: one value a question, one parser and one registry row a suite.

    found = read_suite("nextqa", Path("benchmarks/nextqa"))
    found.questions[0].text, found.questions[0].options, found.questions[0].answer
    found.notices      # rows that can be scored, but not as they stand

A question file is not trusted: what cannot be scored is reported by file and row, and nothing of
it is dropped in silence. No video is opened here; ``asking.py`` watches and asks.
"""

import hashlib
import io
import json
import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import Any, Literal, NamedTuple

from streammem.errors import DatasetError, install_command
from streammem.evaluation import scoring
from streammem.evaluation.scoring import LETTERS, Official
from streammem.types import TimeSpan

MAX_FILE_BYTES = 1 << 30
MAX_SHOWN = 5  # problems in one message
DAY_S = 86_400.0
FAR_S = 600.0  # beyond the clip that a question was made from, a stamp is a slip of the pen
VIDEO_ENDINGS = (".mp4", ".mkv", ".webm", ".avi", ".mov", ".m4v")

RecallKind = Literal["recall", "never", ""]
AnswerCheck = Literal["options", "text", "number", "said", "timeline"]


@dataclass(frozen=True, slots=True)
class SuiteQuestion:
    """A question of a suite.

    Attributes:
        id: unique in its suite.
        video: name of the video in the question file; see ``find_video``.
        text: of the question, without its options.
        options: to choose from; none of an open question.
        answer: of the right options; one, except where several must be named together.
        references: right answers of an open question, any of which counts.
        time: seconds of the video at which it is asked; None asks once the video has ended.
        categories: the suite's own; a question may have several.
        part: what totals are made of. Questions of unlike parts are never added up.
        evidence: seconds of the video that show the answer, where the file states them.
        kind: ``recall`` asks for what happened, ``never`` for what did not: only these two are
            compared as a pair.
        check: how a reply is scored; see ``scoring.score``.
        cut: name of a clip that holds the video up to ``time`` alone, where a suite ships such
            clips; used where the video itself is missing.
        later: of ``never``: it does happen, after ``time``.
        truth: of ``timeline``: the ``TimedQuestion`` and the edges of its scenes.
        cluster: questions of one cluster are right and wrong together, which widens intervals;
            empty: those of its video.
        remark: what is odd about its row.
    """

    id: str
    video: str
    text: str
    options: tuple[str, ...] = ()
    answer: tuple[int, ...] = ()
    references: tuple[str, ...] = ()
    time: float | None = None
    categories: tuple[str, ...] = ()
    part: str = ""
    evidence: tuple[TimeSpan, ...] = ()
    kind: RecallKind = ""
    check: AnswerCheck = "options"
    cut: str = ""
    later: bool = False
    truth: Any = None
    cluster: str = ""
    remark: str = ""

    @property
    def chance(self) -> float:
        """Share of right answers of a uniform guess; 0 of an open question."""
        return 1 / len(self.options) if self.options and len(self.answer) == 1 else 0.0


class QuestionSet(NamedTuple):
    """The questions of a suite.

    Attributes:
        suite: its name.
        questions: in the files' order.
        notices: what is odd about rows that are scored all the same, and what is left out.
        digest: of the question files, 12 hex digits.
    """

    suite: str
    questions: tuple[SuiteQuestion, ...]
    notices: tuple[str, ...]
    digest: str


class MalformedRow(ValueError):
    """A row that cannot be scored; says why."""


class SkippedRow(ValueError):
    """A row of a kind that is not scored here; says which."""


class Fields:
    """The fields of a row, checked as they are read.

    Args:
        fields: of the row; of nested files those of the rows above it, too.
        file: that it stands in, relative to the suite's folder.
        number: of the row in its file, as in ``12`` or ``3.2``.
        folder: of the suite.
    """

    def __init__(self, fields: Mapping[str, Any], file: str, number: str, folder: Path) -> None:
        self.fields, self.file, self.number, self.folder = fields, file, number, folder

    def has(self, name: str) -> bool:
        return self.fields.get(name) is not None

    def text(self, *names: str, default: str | None = None) -> str:
        """Return the first field that is there, as text; a number is written out."""
        for name in names:
            value = self.fields.get(name)
            if isinstance(value, str) and value.strip():
                if "\ufffd" in value:
                    raise MalformedRow(f"{name}: holds characters that were lost in conversion")
                return value.strip()
            if isinstance(value, int | float) and not isinstance(value, bool):
                return str(value)
        if default is None:
            raise MalformedRow(f"{' or '.join(names)}: missing or empty")
        return default

    def seconds(self, name: str) -> float:
        try:
            return seconds_of(self.fields[name])
        except (KeyError, ValueError) as error:
            raise MalformedRow(f"{name}: no time ({self.fields.get(name)!r})") from error

    def options(self, value: Any) -> tuple[str, ...]:
        """Read options: a list, a list written as text, or an object whose keys end in a number."""
        if isinstance(value, str):
            try:
                value = json.loads(value)
            except ValueError:
                value = re.findall(r"'((?:[^'\\]|\\.)*)'|\"((?:[^\"\\]|\\.)*)\"", value)
                value = [one or other for one, other in value]
        if isinstance(value, Mapping):
            try:
                order = sorted(value, key=lambda key: int(re.search(r"\d+$", key)[0]))  # type: ignore[index]
            except TypeError:
                raise MalformedRow("options: keys must end in a number") from None
            if [int(re.search(r"\d+$", key)[0]) for key in order] != list(range(len(order))):  # type: ignore[index]
                raise MalformedRow("options: are not numbered from 0 without a gap")
            value = [value[key] for key in order]
        if not isinstance(value, list | tuple) or not value:
            raise MalformedRow("options: missing or empty")
        shown = [without_letter(str(option).strip(), i) for i, option in enumerate(value)]
        if not all(shown):
            raise MalformedRow(f"options: number {shown.index('')} is empty")
        if len(shown) > len(LETTERS):
            raise MalformedRow(f"options: {len(shown)}, more than there are letters")
        return tuple(shown)

    def choice(self, answer: Any, options: tuple[str, ...]) -> int:
        """Read which option is right: its number from 0, its letter, or its text."""
        found = None
        if isinstance(answer, int | float) and not isinstance(answer, bool):
            found = int(answer) if int(answer) == answer else None
        elif isinstance(answer, str) and answer.strip():
            letter = re.fullmatch(r"\(?([A-Z])[.)]?", answer.strip())
            texts = [option.casefold() for option in options]
            if letter:
                found = LETTERS.index(letter[1])
            elif answer.strip().isdecimal() and answer.strip() not in options:
                found = int(answer)
            elif answer.strip().casefold() in texts:
                found = texts.index(answer.strip().casefold())
            else:
                raise MalformedRow(f"answer {answer.strip()[:40]!r} is none of the options")
        if found is None:
            raise MalformedRow(f"answer: missing, or neither number, letter nor text ({answer!r})")
        if not 0 <= found < len(options):
            raise MalformedRow(f"answer {answer!r} is out of range: {len(options)} options")
        return found


Parse = Callable[[Fields], Iterable[SuiteQuestion]]


@dataclass(frozen=True, slots=True)
class Suite:
    """A registry row.

    Attributes:
        name: as on the command line.
        about: one line for ``--help``.
        files: patterns of question files in the suite's folder; the first that fits counts.
        parse: makes questions of a row.
        layout: where the layout was learned: a published file, or a description alone.
        nested: field of a file's rows that holds the rows proper, where they are nested.
        answers: name of the file beside a question file that holds its answers by ``question_id``.
        official: the benchmark's own rule for a reply.
        videos: folders of the videos, below the suite's own.
        captions: describe every scene while it is watched; else only what an answer rests on.
        wording: whether the wording of answers is scored.
    """

    name: str
    about: str
    files: tuple[str, ...]
    parse: Parse
    layout: str
    nested: str = ""
    answers: str = ""
    official: Official = scoring.option_text
    videos: tuple[str, ...] = ("videos", "video", ".")
    captions: bool = False
    wording: bool = True


# -- parsers, one a suite --


def _videollamb(row: Fields) -> Iterable[SuiteQuestion]:
    """EgoSchema, NExT-QA, EgoPlan and MVBench, as VideoLLaMB evaluates them."""
    options = row.options(row.fields.get("option"))
    kind = row.text("type", default="")
    yield SuiteQuestion(
        id=row.text("question_id"),
        video=row.text("video_name"),
        text=row.text("question"),
        options=options,
        answer=(row.choice(row.fields.get("answer"), options),),
        categories=(kind,) if kind else (),
    )


def _videomme(row: Fields) -> Iterable[SuiteQuestion]:
    options = row.options(row.fields.get("options"))
    yield SuiteQuestion(
        id=row.text("question_id"),
        video=row.text("videoID", "video_id"),
        text=row.text("question"),
        options=options,
        answer=(row.choice(row.fields.get("answer"), options),),
        categories=tuple(
            f"{name}: {row.text(name)}"
            for name in ("duration", "domain", "task_type")
            if row.has(name)
        ),
    )


def _lvbench(row: Fields) -> Iterable[SuiteQuestion]:
    """LVBench, whose options stand in the question's text as ``(A) ...`` lines."""
    text, *lines = re.split(r"\n\s*(?=\([A-Z]\))", row.text("question"))
    options = row.options(lines)
    kinds = row.fields.get("question_type") or ()
    spans = row.text("time_reference", default="")
    yield SuiteQuestion(
        id=row.text("uid"),
        video=row.text("key"),
        text=text.strip(),
        options=options,
        answer=(row.choice(row.fields.get("answer"), options),),
        categories=tuple(kinds) if isinstance(kinds, list) else (str(kinds),),
        evidence=_spans(spans),
        kind="recall" if "key information retrieval" in kinds else "",
    )


def _mlvu(row: Fields) -> Iterable[SuiteQuestion]:
    kind = row.text("question_type", "task_type")
    stem = PurePosixPath(row.file).stem
    common = SuiteQuestion(
        id=row.text("question_id", default=f"{stem}-{row.number}"),
        video=row.text("video", "video_name"),
        text=row.text("question"),
        categories=(kind,),
    )
    if not row.has("candidates"):
        reference = row.text("answer")
        yield replace(common, references=(reference,), check="text", part="open")
        return
    options = row.options(row.fields["candidates"])
    answer = (row.choice(row.fields.get("answer"), options),)
    yield replace(common, options=options, answer=answer, part="multiple choice")


OVO_PARTS = {
    **dict.fromkeys(("EPM", "ASI", "HLD"), "backward"),
    **dict.fromkeys(("STU", "OJR", "ATR", "ACR", "OCR", "FPD"), "real-time"),
    **dict.fromkeys(("REC", "SSR", "CRR"), "forward"),
}
OVO_KINDS: dict[str, RecallKind] = {"EPM": "recall", "ASI": "recall", "HLD": "never"}


def _ovo(row: Fields) -> Iterable[SuiteQuestion]:
    """OVO-Bench: a forward row asks again and again, each time a question of its own."""
    task = row.text("task")
    if task not in OVO_PARTS:
        raise MalformedRow(f"task {task!r} is none of {', '.join(OVO_PARTS)}")
    name, part = row.text("id"), OVO_PARTS[task]
    common = SuiteQuestion(id=name, video=row.text("video"), text="", categories=(task,), part=part)
    if part != "forward":
        options = row.options(row.fields.get("options"))
        yield replace(
            common,
            text=row.text("question"),
            options=options,
            answer=(row.choice(row.fields.get("gt"), options),),
            time=row.seconds("realtime"),
            kind=OVO_KINDS.get(task, ""),
            cut=f"{name}.mp4",
        )
        return
    tests = row.fields.get("test_info")
    if not isinstance(tests, list) or not tests:
        raise MalformedRow("test_info: missing or empty")
    for number, fields in enumerate(tests):
        if not isinstance(fields, dict):
            raise MalformedRow(f"test_info {number}: no object")
        test = Fields(fields, row.file, row.number, row.folder)
        each = replace(
            common, id=f"{name}_{number}", time=test.seconds("realtime"), cut=f"{name}_{number}.mp4"
        )
        if task == "REC":
            text = f"How many times did they {row.text('activity')}?"
            yield replace(each, text=text, references=(_count(test.text("count")),), check="number")
            continue
        if task == "SSR":
            text = f"Is this being done now: {test.text('step')}?"
        else:
            text = f"{row.text('question')} Can this be answered from what was seen so far?"
        yes = fields.get("type")
        if yes not in (0, 1):
            raise MalformedRow(f"test_info {number}: type must be 0 or 1, not {yes!r}")
        yield replace(each, text=text, options=("No", "Yes"), answer=(int(yes),), check="said")


def _streamingbench(row: Fields) -> Iterable[SuiteQuestion]:
    if row.has("ground_truth_output"):
        raise SkippedRow("proactive output: asks when to speak, and is not scored here")
    options = row.options(row.fields.get("options"))
    time, clip = row.seconds("time_stamp"), _spans(row.text("time", default=""))
    video, remark = PurePosixPath(row.text("video_path")), ""
    if clip and time > clip[-1].end + FAR_S:
        stamp, end = row.text("time_stamp"), clip[-1].end
        remark = f"time_stamp {stamp} is {time:g} s, though its clip ends at {end:g} s"
    yield SuiteQuestion(
        id=row.text("question_id", default=f"{PurePosixPath(row.file).stem}-{row.number}"),
        video=video.name,
        text=row.text("question"),
        options=options,
        answer=(row.choice(row.fields.get("answer"), options),),
        time=time,
        categories=(row.text("task_type"),),
        part=PurePosixPath(row.file).stem.removeprefix("questions_"),
        # The clip that the question was made from; it is evidence where it lies before the stamp.
        evidence=tuple(span for span in clip if span.start <= time),
        remark=remark,
    )


def _vsi_super(row: Fields) -> Iterable[SuiteQuestion]:
    """VSI-SUPER: recall by options, counts as numbers, streamed counts at several times."""
    length = row.text("type", "split", default="")
    name = row.text("id", "index", default=f"{PurePosixPath(row.file).stem}-{row.number}")
    common = SuiteQuestion(
        id=name,
        video=row.text("video_path", "video"),
        text=row.text("question"),
        categories=(length,) if length else (),
    )
    if row.has("options"):
        options = row.options(row.fields["options"])
        answer = (row.choice(row.fields.get("answer"), options),)
        yield replace(common, options=options, answer=answer, part="recall", kind="recall")
        return
    common = replace(common, check="number", part="count")
    if not row.has("query_times"):
        yield replace(common, references=(_count(row.text("answer")),))
        return
    times, answers = row.fields["query_times"], row.fields.get("answers")
    if not isinstance(answers, list) or not isinstance(times, list) or len(times) != len(answers):
        raise MalformedRow("answers: needs as many as there are query_times")
    for number, (time, count) in enumerate(zip(times, answers, strict=True)):
        yield replace(
            common,
            id=f"{name}_{number}",
            time=seconds_of(time),
            references=(_count(count),),
            part="count, streamed",
        )


def _egolife(row: Fields) -> Iterable[SuiteQuestion]:
    """EgoLifeQA: times are of the participants' wall clock, counted from DAY1, 00:00."""
    options = row.options([row.fields.get(f"choice_{letter}") or "" for letter in "abcd"])
    asked = row.fields.get("query_time")
    if not isinstance(asked, dict):
        raise MalformedRow("query_time: needs date and time")
    target = row.fields.get("target_time")
    targets = target if isinstance(target, list) else [target]
    spans = []
    for each in targets:
        if isinstance(each, dict) and isinstance(each.get("time"), str):
            spans += [
                TimeSpan(start, start + 30.0)
                for stamp in re.findall(r"\d{8}", each["time"])
                if (start := _egolife_seconds(each.get("date"), stamp)) is not None
            ]
    time = _egolife_seconds(asked.get("date"), asked.get("time"))
    if time is None:
        raise MalformedRow(f"query_time: no time of a day ({asked!r})")
    yield SuiteQuestion(
        id=row.text("ID"),
        video=PurePosixPath(row.file).stem.removeprefix("EgoLifeQA_"),
        text=row.text("question"),
        options=options,
        answer=(row.choice(row.fields.get("answer"), options),),
        time=time,
        categories=(row.text("type"),),
        evidence=tuple(span for span in spans if span.start <= time),
        kind="recall",
    )


def _egolife_seconds(day: Any, stamp: Any) -> float | None:
    """Return seconds since DAY1, 00:00, of ``DAY2``, ``HHMMSSFF`` at 20 frames a second."""
    number = re.fullmatch(r"DAY(\d)", str(day))
    parts = re.fullmatch(r"(\d\d)(\d\d)(\d\d)(\d\d)", str(stamp))
    if not number or not parts:
        return None
    hours, minutes, seconds, frames = map(int, parts.groups())
    if hours > 23 or minutes > 59 or seconds > 59:
        return None
    clock = 3600 * hours + 60 * minutes + seconds + frames / 20
    return DAY_S * (int(number[1]) - 1) + clock


def _teleego(row: Fields) -> Iterable[SuiteQuestion]:
    """TeleEgo: asked where its evidence ends, as its own scripts ask; times through a timeline."""
    person = re.search(r"P\d+", row.file)
    if not person:
        raise MalformedRow("file name: names no participant (merged_P1_A.json)")
    span = (row.fields.get("evidence") or {}).get("timestep") or {}
    timeline = _teleego_timeline(row.folder, person[0])
    start, end = (_teleego_seconds(timeline, span.get(name)) for name in ("start", "end"))
    if end is None:
        raise MalformedRow(f"evidence.timestep.end: no time of the timeline ({span.get('end')!r})")
    value, kind = (row.fields.get("answer") or {}).get("value"), row.text("QA_type").lower()
    common = SuiteQuestion(
        id=f"{person[0]}-{row.text('index')}",
        video=f"merged_{person[0]}",
        text=row.text("question"),
        time=end,
        categories=(row.text("category"), row.text("subcategory")),
        evidence=(TimeSpan(start, end),) if start is not None else (),
        part=kind,
    )
    if kind == "binary":
        yes = str(value[0] if isinstance(value, list) and value else value).lower()
        if yes not in ("true", "false"):
            raise MalformedRow(f"answer.value: neither true nor false ({value!r})")
        right = (int(yes == "true"),)
        yield replace(common, options=("False", "True"), answer=right, check="said")
    elif kind in ("mc_single", "mc_multi"):
        options = row.options(row.fields.get("options"))
        letters = re.findall(r"[A-Z]", str(value).upper() if value is not None else "")
        if not letters or (kind == "mc_single" and len(letters) != 1):
            raise MalformedRow(f"answer.value: no letter ({value!r})")
        chosen = tuple(sorted({row.choice(letter, options) for letter in letters}))
        yield replace(common, options=options, answer=chosen)
    elif kind == "open_ended":
        reference = value[0] if isinstance(value, list) and value else value
        if not isinstance(reference, str) or not reference.strip():
            raise MalformedRow("answer.value: missing or empty")
        yield replace(common, references=(reference.strip(),), check="text")
    else:
        raise MalformedRow(f"QA_type {kind!r} is not known")


def _teleego_timeline(folder: Path, person: str) -> list[tuple[float, float, float]]:
    """Return (start, end, offset in the merged video) of each stretch of recording."""
    for path in sorted(folder.rglob(f"timeline_{person}.json")):
        try:
            rows = json.loads(path.read_text("utf-8"))["mapping_by_input_label"].values()
            return [
                (
                    _day_seconds(row["start_label"]),
                    _day_seconds(row["end_label"]),
                    float(row["merged_offset_start_seconds"]),
                )
                for row in rows
            ]
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise MalformedRow(f"{path.name}: malformed ({error})") from error
    return []


def _teleego_seconds(timeline: list[tuple[float, float, float]], label: Any) -> float | None:
    if isinstance(label, int | float):
        return float(label)
    try:
        at = _day_seconds(str(label))
    except ValueError:
        try:
            return seconds_of(label)
        except ValueError:
            return None
    return next((offset + at - a for a, b, offset in timeline if a <= at <= b), None)


def _day_seconds(label: str) -> float:
    """Return seconds since day 1, 00:00, of ``D2-09:31:38``."""
    found = re.fullmatch(r"(?:D|day)\s*(\d+)[-\s]?([\d:]+)", label.strip(), re.IGNORECASE)
    if not found:
        raise ValueError(label)
    return DAY_S * (int(found[1]) - 1) + seconds_of(found[2])


def _needle(row: Fields) -> Iterable[SuiteQuestion]:
    """VideoLLaMB's needle: made videos, whose names say where the second that is asked for lies."""
    names = sorted(
        path.relative_to(row.folder).as_posix()
        for path in row.folder.rglob("*.mp4")
        if re.search(r"_(?:text|image|video)_\d+_\d+$", path.stem)
    )
    if not names:
        raise MalformedRow("no video HAYSTACK_MODALITY_LENGTH_SECOND.mp4 in the folder")
    for name in names:
        *_, kind, length, at = PurePosixPath(name).stem.split("_")
        start = float(at)
        yield SuiteQuestion(
            id=PurePosixPath(name).stem,
            video=name,
            text=row.text("retrieval_question"),
            references=(row.text("needle_desc"),),
            categories=(kind, f"{length} s"),
            evidence=(TimeSpan(start, start + 1.0),),
            kind="recall",
            check="text",
        )


def _films(row: Fields) -> Iterable[SuiteQuestion]:
    from streammem.evaluation.film_files import suite_questions

    try:
        yield from suite_questions(row.fields)
    except (KeyError, TypeError, ValueError) as error:
        raise MalformedRow(f"malformed; make the films anew ({error})") from error


OURS = "made by streammem eval make"
SUITES = {
    suite.name: suite
    for suite in (
        Suite(
            "films", "films that eval make made, with questions of known truth", ("films.jsonl",),
            _films, OURS, captions=True, wording=False, videos=(".",),
        ),
        Suite(
            "egoschema", "EgoSchema, the subset of 500", ("test_q.json",), _videollamb,
            "published file", answers="test_a.json",
        ),
        Suite(
            "nextqa", "NExT-QA, validation", ("test_q.json",), _videollamb, "published file",
            answers="test_a.json",
        ),
        Suite(
            "egoplan", "EgoPlan, 923 questions", ("test_q.json",), _videollamb, "published file",
            answers="test_a.json",
        ),
        Suite(
            "mvbench", "MVBench", ("test_q.json",), _videollamb, "published file",
            answers="test_a.json",
        ),
        Suite(
            "videomme", "Video-MME", ("*.parquet", "videomme/*.parquet", "*.jsonl", "*.json"),
            _videomme, "code that reads it", official=scoring.first_letter, videos=("data", "."),
        ),
        Suite(
            "lvbench", "LVBench", ("video_info.meta.jsonl", "data/video_info.meta.jsonl"),
            _lvbench, "code that reads it", nested="qa", official=scoring.first_letter,
            videos=("videos", "video", "all_videos", "."),
        ),
        Suite(
            "mlvu", "MLVU", ("json/*.json", "*.json"), _mlvu, "code that reads it",
            official=scoring.before_bracket,
        ),
        Suite(
            "ovo", "OVO-Bench; real-time, backward and forward apart",
            ("ovo_bench_new.json", "data/ovo_bench_new.json", "**/data.json"), _ovo,
            "published file", official=scoring.letter_anywhere,
            videos=("src_videos", "chunked_videos", "videos", "."),
        ),
        Suite(
            "streamingbench", "StreamingBench; its question files apart",
            ("questions_*.json", "src/data/questions_*.json"), _streamingbench, "published file",
            nested="questions", official=scoring.first_letter,
        ),
        Suite(
            "vsi-super", "VSI-SUPER, recall and count", ("*.parquet", "*.jsonl", "*.tsv", "*.json"),
            _vsi_super, "code that reads it", official=scoring.first_letter,
        ),
        Suite(
            "egolife", "EgoLifeQA, a participant a file",
            ("EgoLifeQA_*.json", "EgoLifeQA/EgoLifeQA_*.json"), _egolife, "code that reads it",
            official=scoring.first_letter, videos=(".",),
        ),
        Suite(
            "teleego", "TeleEgo", ("merged_P*_A.json", "QAs/merged_P*_A.json"), _teleego,
            "code that reads it", official=scoring.first_letter, videos=("video_merged", "."),
        ),
        Suite(
            "needle", "VideoLLaMB's needle in a video haystack, videos made by its own script",
            ("needle.json",), _needle, "code that writes it", videos=(".",),
        ),
    )
}  # fmt: skip


# -- reading --


@dataclass(slots=True)
class _Found:
    """What reading gives so far."""

    questions: list[SuiteQuestion] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    notices: list[str] = field(default_factory=list)
    skipped: Counter[str] = field(default_factory=Counter)
    lines: dict[str, str] = field(default_factory=dict)  # of each id, where it stands

    def take(self, suite: Suite, row: Fields) -> None:
        """Parse a row, and check what its questions have in common with all others."""
        place = f"{row.file}: row {row.number}"
        try:
            for question in suite.parse(row):
                if before := self.lines.get(question.id):
                    raise MalformedRow(f"id {question.id!r} stands in {before}, too")
                if question.time is not None and not 0 <= question.time < math.inf:
                    raise MalformedRow(f"asked at {question.time} s")
                self.lines[question.id] = place
                self.notices += [f"{place}: {odd}" for odd in _oddities(question)]
                self.questions.append(question)
        except SkippedRow as reason:
            self.skipped[str(reason)] += 1
        except MalformedRow as error:
            self.problems.append(f"{place}: {error}")
        # A field of a kind that no row has: what a parser makes of it depends on the field.
        except (ValueError, TypeError, AttributeError, LookupError, OverflowError) as error:
            self.problems.append(f"{place}: malformed ({type(error).__name__}: {error})")


def read_suite(name: str, folder: Path, *, skip: bool = False) -> QuestionSet:
    """Read the question files of a suite.

    Args:
        name: a key of ``SUITES``.
        folder: holds the suite as it is published.
        skip: leave out rows that cannot be scored, each with a notice, instead of refusing all.

    Raises:
        DatasetError: a missing file, one that is not UTF-8 or not JSON, or rows that cannot be
            scored: fields that are missing, ids that occur twice, answers out of range. Names file
            and row of the first ``MAX_SHOWN``.
    """
    suite = SUITES[name]
    paths = next((there for p in suite.files if (there := sorted(folder.glob(p)))), [])
    paths = [path for path in paths if path.name != suite.answers]
    if not paths:
        what = (
            "holds no question file" if folder.is_dir() else "no such folder, so no question file"
        )
        answers = f", with {suite.answers} beside it" if suite.answers else ""
        raise DatasetError(
            f"{folder}: {what} of {name}; looked for {' or '.join(suite.files)}{answers}"
        )
    found, digest = _Found(), hashlib.sha256()
    for path in paths:
        shown = path.relative_to(folder).as_posix()
        rows = _records(path, suite.nested)  # which refuses a file that is too large
        digest.update(path.read_bytes())
        if suite.answers:
            beside = path.with_name(suite.answers)
            if not beside.is_file():
                raise DatasetError(f"{beside}: the file of answers is missing")
            rows = _joined(rows, _records(beside, ""), beside.name, found.problems)
            digest.update(beside.read_bytes())
        for number, fields in rows:
            found.take(suite, Fields(fields, shown, number, folder))
    if found.problems and not skip:
        more = len(found.problems) - MAX_SHOWN
        tail = f"; and {more} rows more" if more > 0 else ""
        shown = "; ".join(found.problems[:MAX_SHOWN])
        raise DatasetError(f"{folder}: {shown}{tail}; --skip-bad-rows leaves them out, and counts")
    if not found.questions:
        raise DatasetError(f"{folder}: its question files hold no question")
    left_out = [f"{count} rows left out: {why}" for why, count in found.skipped.items()]
    left_out += [f"left out: {problem}" for problem in found.problems]
    return QuestionSet(
        name, tuple(found.questions), (*left_out, *found.notices), digest.hexdigest()[:12]
    )


def _oddities(question: SuiteQuestion) -> Iterator[str]:
    if question.remark:
        yield question.remark
    options = [option.casefold() for option in question.options]
    twice = [option for option, count in Counter(options).items() if count > 1]
    if len(options) == 1:
        yield "one option only: any reply is right"
    if twice:
        numbers = [i for i, option in enumerate(options) if option == twice[0]]
        right = ", one of them right" if set(numbers) & set(question.answer) else ""
        yield f"options {' and '.join(map(str, numbers))} are equal{right}"
    if question.time is not None and question.evidence:
        first = min(span.start for span in question.evidence)
        if question.kind != "never" and first > question.time:
            yield f"asked at {question.time:g} s, before its evidence begins at {first:g} s"


def _records(path: Path, nested: str) -> list[tuple[str, Mapping[str, Any]]]:
    """Read a file's rows with their numbers, from 1.

    Raises:
        DatasetError: unreadable, or not a list of objects.
    """
    if path.stat().st_size > MAX_FILE_BYTES:
        raise DatasetError(f"{path}: larger than {MAX_FILE_BYTES >> 20} MiB")
    rows = _parquet(path) if path.suffix == ".parquet" else _text_rows(path)
    numbered: list[tuple[str, Mapping[str, Any]]] = []
    for number, row in enumerate(rows, 1):
        if not isinstance(row, dict):
            raise DatasetError(f"{path}: row {number}: no object")
        if not nested or (nested not in row and "question" in row):
            numbered.append((str(number), row))
            continue
        inner = row.get(nested)
        if not isinstance(inner, list) or not all(isinstance(each, dict) for each in inner):
            raise DatasetError(f"{path}: row {number}: {nested} must be a list of objects")
        above = {key: value for key, value in row.items() if key != nested}
        numbered += [(f"{number}.{i}", {**above, **each}) for i, each in enumerate(inner, 1)]
    return numbered


def _text_rows(path: Path) -> list[Any]:
    content = path.read_bytes()
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise DatasetError(
            f"{path}: line {line}: not UTF-8 (byte {content[error.start]:#04x}); convert the file"
        ) from error
    if path.suffix in (".tsv", ".csv"):
        import csv

        csv.field_size_limit(1 << 24)
        lines, delimiter = io.StringIO(text, newline=""), "\t" if path.suffix == ".tsv" else ","
        try:
            return list(csv.DictReader(lines, delimiter=delimiter))
        except csv.Error as error:
            raise DatasetError(f"{path}: not a table ({error})") from error
    if path.suffix == ".jsonl":
        return [
            _json(each, f"{path}: row {number}")
            for number, each in enumerate(text.split("\n"), 1)  # other ends may stand in strings
            if each.strip()
        ]
    read = _json(text, str(path))
    rows = read if isinstance(read, list) else [read]
    # StreamingBench's sequences of questions stand in lists of their own.
    return [row for each in rows for row in (each if isinstance(each, list) else [each])]


def _json(text: str, place: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DatasetError(f"{place}: not JSON ({error})") from error


def _parquet(path: Path) -> list[Any]:
    try:
        import pyarrow.parquet as parquet
    except ImportError as error:
        command = install_command("parquet")
        raise DatasetError(f"{path}: needs pyarrow: {command}, or give a .jsonl") from error
    try:
        rows: list[Any] = parquet.read_table(path).to_pylist()
    except (OSError, ValueError) as error:
        raise DatasetError(f"{path}: cannot be read as Parquet ({error})") from error
    return rows


def _joined(
    rows: list[tuple[str, Mapping[str, Any]]],
    answers: list[tuple[str, Mapping[str, Any]]],
    file: str,
    problems: list[str],
) -> list[tuple[str, Mapping[str, Any]]]:
    """Add to each question the fields of its answer."""
    by_id: dict[str | None, Mapping[str, Any]] = {}

    def id_of(fields: Mapping[str, Any]) -> str | None:
        name = fields.get("question_id")
        return None if name is None else str(name)

    for number, fields in answers:
        name = id_of(fields)
        if name is None or name in by_id:
            twice = "is there twice" if name is not None else "missing"
            problems.append(f"{file}: row {number}: question_id {name!r} {twice}")
        by_id.setdefault(name, fields)
    asked = {id_of(fields) for _, fields in rows}
    problems += [
        f"{file}: row {number}: question_id {fields.get('question_id')!r} is asked nowhere"
        for number, fields in answers
        if id_of(fields) not in asked
    ]
    return [(n, {**by_id.get(id_of(row), {}), **row}) for n, row in rows]


def _count(value: Any) -> str:
    """Return a count as its reference.

    Raises:
        MalformedRow: no number.
    """
    try:
        if math.isfinite(float(value)):
            return str(value)
    except (TypeError, ValueError):
        pass
    raise MalformedRow(f"no count: {value!r}")


def without_letter(option: str, number: int) -> str:
    """Take the letter off an option that begins with its own, as in ``B. a cat``."""
    found = re.match(rf"\(?{LETTERS[number % 26]}(?:[.)]|:)\s*(?=\S)", option)
    return option[found.end() :] if found else option


def seconds_of(value: Any) -> float:
    """Read seconds: a number, or ``HH:MM:SS``, ``MM:SS``, with or without a fraction.

    Raises:
        ValueError: no time, or below 0.
    """
    if isinstance(value, bool) or value is None:
        raise ValueError(f"no time: {value!r}")
    if isinstance(value, int | float):
        seconds = float(value)
    else:
        parts = str(value).strip().split(":")
        if not 1 <= len(parts) <= 3:
            raise ValueError(f"no time: {value!r}")
        seconds = 0.0
        for part in parts:
            seconds = 60 * seconds + float(part)
    if not 0 <= seconds < math.inf:
        raise ValueError(f"no time: {value!r}")
    return seconds


def _spans(text: str) -> tuple[TimeSpan, ...]:
    """Read spans such as ``00:15-00:19`` or ``[0:01:00 - 0:02:00]``; what is none is left out."""
    found = re.findall(r"(\d+(?::\d+)+)\s*-\s*(\d+(?::\d+)+)", text)
    spans = [TimeSpan(seconds_of(start), seconds_of(end)) for start, end in found]
    return tuple(span for span in spans if span.start <= span.end)


# -- videos --


class VideoPiece(NamedTuple):
    """A file of a video, and the seconds at which it begins there."""

    path: Path
    offset: float = 0.0


class Videos:
    """The video files of a suite, by name.

    Args:
        suite: whose they are.
        folder: of the suite.
        root: folder of its videos; None searches the suite's own.
    """

    def __init__(self, suite: Suite, folder: Path, root: Path | None = None) -> None:
        roots = [root] if root else [folder / name for name in suite.videos]
        self.roots = [each for each in roots if each.is_dir()]
        self._stems: dict[str, Path] = {}
        for each in self.roots:
            for path in sorted(each.rglob("*")):
                if path.suffix.lower() in VIDEO_ENDINGS:
                    self._stems.setdefault(path.stem, path)

    def find(self, name: str) -> tuple[VideoPiece, ...]:
        """Return the files of a video in time order; none where it is missing.

        Args:
            name: a path below a root with or without its ending, or a file's name alone; or of
                EgoLife a participant, whose clips carry their time in their names.
        """
        pure = PurePosixPath(name)
        if not pure.is_absolute() and ".." not in pure.parts:
            for root in self.roots:
                for ending in ("", *VIDEO_ENDINGS):
                    path = root / f"{name}{ending}"
                    with suppress(OSError):  # a name that no file can have
                        if path.is_file():
                            return (VideoPiece(path),)
        stem = pure.stem if pure.suffix.lower() in VIDEO_ENDINGS else pure.name
        if stem in self._stems:
            return (VideoPiece(self._stems[stem]),)
        clips = []
        for each, path in self._stems.items():
            found = re.fullmatch(rf"(DAY\d)_{re.escape(name)}_(\d{{8}})", each)
            if found and (at := _egolife_seconds(found[1], found[2])) is not None:
                clips.append(VideoPiece(path, at))
        return tuple(sorted(clips, key=lambda part: part.offset))
