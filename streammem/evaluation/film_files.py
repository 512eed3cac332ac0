"""Film files: made of clips and photos, watched once, then asked.

    make_films(Path("clips"), Path("films"), MakeOptions(photos=Path("flickr8k"), films=2))
    report = evaluate_films(Path("films"), load("streammem-tiny"), FilmOptions())
    report["report"]["all"]["right, present"]

The clips, and the photos, are split in two halves: films of the half ``fit`` are for fitting, those
of ``report`` for figures. A folder of films has ``films.jsonl``, a line a film with its scenes and
questions; their memories stay beside them.
"""

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import av
import numpy as np
from PIL import Image, ImageDraw
from tqdm import tqdm

from streammem.errors import ConfigError, DatasetError
from streammem.evaluation import films
from streammem.evaluation.answers import Outcome, is_right
from streammem.evaluation.datasets import (
    EvaluationOptions,
    prediction_lines,
    read_photo,
    read_photos,
)
from streammem.evaluation.timelines import TimedQuestion

WIDTH, HEIGHT, FPS = 640, 360, 25
HALVES = ("fit", "report")
LIST = "films.jsonl"
SLOW = ("uniform", "now")  # contexts in which the model answers in its own words
MAX_PHOTOS = 400
FEW = 12  # questions to a film in those

Context = Literal["memory", "captions", "uniform", "now", "blind"]
CONTEXTS: tuple[Context, ...] = ("memory", "captions", "uniform", "now", "blind")


@dataclass(frozen=True, slots=True)
class MakeOptions:
    """What films are made.

    Attributes:
        photos: a data folder whose validation photos come between the clips; see ``read_photos``.
        films: of each half, >= 1.
        minutes: length of a film, in [1, 120].
        limit: photos at most.
        seed: equal seeds make equal films.
        progress: show a bar on stderr, where that is a terminal.

    Raises:
        ConfigError: a value out of range.
    """

    photos: Path | None = None
    films: int = 1
    minutes: float = 5.0
    limit: int = MAX_PHOTOS
    seed: int = 0
    progress: bool = True

    def __post_init__(self) -> None:
        if self.films < 1 or not 1 <= self.minutes <= 120 or self.limit < 1:
            raise ConfigError("films: films >= 1, minutes in [1, 120], limit >= 1")


class MadeFilm(NamedTuple):
    """A film as ``films.jsonl`` lists it: its file, its half, its truth and its questions."""

    name: str
    half: str
    edges: np.ndarray
    questions: tuple[films.TimedQuestion, ...]


# -- making --


def read_clips(folder: Path) -> list[films.Clip]:
    """Read clips of one shot: ``manifest.jsonl`` has rows {file, caption, seconds, multi_shot}.

    Raises:
        DatasetError: the table is missing or malformed, or holds fewer than four clips.
    """
    table = folder / "manifest.jsonl"
    try:
        rows = [json.loads(line) for line in table.read_text().splitlines()]
        found = [
            films.Clip(str(row["file"]), (str(row["caption"]),), float(row["seconds"]) - 0.05)
            for row in rows
            if not row.get("multi_shot") and row["seconds"] >= 1.5
        ]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DatasetError(
            f"{table}: needs rows with file, caption and seconds ({error})"
        ) from error
    missing = [clip.name for clip in found if not (folder / clip.name).is_file()]
    if missing or len(found) < 4:
        raise DatasetError(f"{table}: needs four clips of one shot; missing: {missing or 'some'}")
    return found


def make_films(folder: Path, out: Path, options: MakeOptions) -> list[Path]:
    """Make films with questions; those that are there already stay.

    Args:
        folder: of clips, see ``read_clips``.
        out: made if need be.
        options: see ``MakeOptions``.

    Returns:
        The files. A film is a whole file or none; after an interruption the same call goes on.

    Raises:
        DatasetError: a folder is malformed.
        ConfigError: ``out`` holds films of other clips or options.
    """
    # 1. Clips and photos, each split in two.
    clips = read_clips(folder)
    photos = []
    if options.photos is not None:
        for photo in read_photos(options.photos, "val")[: options.limit]:
            photos.append(films.Clip(str(photo.path.resolve()), photo.captions))
    halves: dict[str, list[films.Clip]] = {half: [] for half in HALVES}
    for pool in (clips, photos):
        order = np.random.default_rng(0).permutation(len(pool))
        for number, half in enumerate(HALVES):
            halves[half] += [pool[i] for i in sorted(order[number::2])]
    # 2. Plans and questions; a folder holds what one list tells.
    lines, plans = [], []
    for half, own in halves.items():
        for number in range(options.films):
            seed = 1000 * options.seed + 2 * number + HALVES.index(half)
            film = films.plan(own, 60 * options.minutes, seed=seed)
            path = out / f"{half}-{number}.mp4"
            plans.append((path, film, own))
            shown = [(own[scene.clip], scene) for scene in film.scenes]
            scenes = [
                {"file": Path(clip.name).name, **scene._asdict(), "said": clip.sentences}
                for clip, scene in shown
            ]
            questions = [
                {"text": q.text, "operator": q.operator, "gold": q.gold, "common": q.common}
                for q in films.ask_about(film, own, seed=seed)
            ]
            row = {"film": path.name, "half": half, "scenes": scenes, "questions": questions}
            lines.append(f"{json.dumps(row)}\n")
    out.mkdir(parents=True, exist_ok=True)
    if is_films(out) and (out / LIST).read_text() != "".join(lines):
        raise ConfigError(f"{out}: holds films of other clips or options; give a new folder")
    (out / LIST).write_text("".join(lines))
    # 3. Files.
    for path, film, own in plans:
        if path.exists():
            continue
        bar = tqdm(film.scenes, path.name, disable=None if options.progress else True)
        pictures = (p for scene in bar for p in _pictures(folder / own[scene.clip].name, scene))
        write(path, pictures)
    return [path for path, *_ in plans]


def _pictures(path: Path, scene: films.FilmScene) -> Iterator[np.ndarray]:
    """Yield a scene's pictures: of a clip its frames, of a photo a window that moves over it."""
    if scene.move in ("plain", "mirrored"):
        for picture in letterboxed(path, scene.start, scene.end):
            yield picture[:, ::-1] if scene.move == "mirrored" else picture
        return
    photo = Image.fromarray(read_photo(path))
    count = round((scene.end - scene.start) * FPS)
    rng = np.random.default_rng(round(scene.end * 1e6))
    (first, last), ends = rng.uniform(0.75, 1.0, 2), rng.uniform(0, 1, (2, 2))
    if scene.move == "still":
        first = last = 1.0
    # A fixed camera's picture is never quite the same.
    noise = rng.integers(-2, 3, (8, HEIGHT, WIDTH, 1)) if scene.move == "still" else np.zeros(8)
    still = None
    for number in range(count):
        if still is None or scene.move != "still":
            part = number / max(1, count - 1)
            size = np.array(photo.size) * (first + (last - first) * part)
            corner = (ends[0] + (ends[1] - ends[0]) * part) * (np.array(photo.size) - size)
            box = (*corner.tolist(), *(corner + size).tolist())
            scale = min(WIDTH / size[0], HEIGHT / size[1])
            shape = (max(1, round(size[0] * scale)), max(1, round(size[1] * scale)))
            resized = photo.resize(shape, Image.Resampling.BILINEAR, box=box)
            still = _framed(np.asarray(resized))
        yield np.clip(still + noise[number % 8], 0, 255).astype(np.uint8)


def letterboxed(path: Path, start: float, end: float) -> Iterator[np.ndarray]:
    """Yield [H, W, 3] uint8 pictures at ``FPS`` of the frames shown in [start, end) seconds."""
    num_given = 0
    with av.open(str(path)) as container:
        container.streams.video[0].thread_count = 1
        shown = None
        for frame in container.decode(video=0):
            while shown is not None and start + num_given / FPS < min(frame.time, end):
                yield shown
                num_given += 1
            if frame.time >= end:
                return
            if frame.time >= start - 1:  # earlier ones are never shown
                scale = min(WIDTH / frame.width, HEIGHT / frame.height)
                width, height = round(frame.width * scale), round(frame.height * scale)
                shown = _framed(
                    frame.to_ndarray(
                        format="rgb24", width=width, height=height, interpolation="LANCZOS"
                    )
                )
        if shown is not None:
            yield shown


def _framed(small: np.ndarray) -> np.ndarray:
    """Put a picture that fits into the middle of a black one."""
    height, width = small.shape[:2]
    left, top = (WIDTH - width) // 2, (HEIGHT - height) // 2
    picture = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    picture[top : top + height, left : left + width] = small
    return picture


def write(video: Path, pictures: Iterable[np.ndarray]) -> None:
    """Encode [H, W, 3] uint8 pictures at ``FPS``; the file appears when it is complete."""
    unfinished = video.with_name(f"{video.stem}.part{video.suffix}")
    with av.open(str(unfinished), "w") as container:
        options = {"crf": "20", "preset": "veryfast"}
        stream = container.add_stream("libx264", rate=FPS, options=options)
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        stream.thread_count = 1
        for picture in pictures:
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    unfinished.replace(video)


# -- asking --


def is_films(folder: Path) -> bool:
    """Return whether ``make_films`` made a folder."""
    return (folder / LIST).is_file()


def read_films(folder: Path) -> list[MadeFilm]:
    """Read what films a folder has.

    Raises:
        DatasetError: its list is malformed.
    """
    try:
        rows = [json.loads(line) for line in (folder / LIST).read_text().splitlines()]
        return [
            MadeFilm(
                row["film"],
                row["half"],
                np.cumsum([0.0, *(scene["end"] - scene["start"] for scene in row["scenes"])]),
                tuple(
                    TimedQuestion(q["text"], q["operator"], tuple(q["gold"]), q["common"])
                    for q in row["questions"]
                ),
            )
            for row in rows
        ]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DatasetError(f"{folder / LIST}: malformed; make the films anew ({error})") from error


def evaluate_films(
    folder: Path, model: Any, options: EvaluationOptions, *, context: Context = "memory"
) -> dict[str, Any]:
    """Ask films; what was not watched yet is watched and captioned first.

    Args:
        folder: see ``make_films``.
        model: any that sessions take.
        options: ``limit`` is of questions to a film; ``predictions`` gets a line an answer.
        context: what is answered from, see ``SessionConfig``; ``blind`` is the memory of the next
            film of the other half.

    Returns:
        The object for JSON: ``halves`` with the tables of ``films.table``, ``curves`` with
        (coverage, risk) at every tenth.

    Raises:
        DatasetError: the folder is malformed.
    """
    made = read_films(folder)
    memories = [_watched(folder / film.name, model, options) for film in made]
    outcomes: dict[str, list[Outcome]] = {}
    with prediction_lines(options.predictions) as write_lines:
        for number, film in enumerate(made):
            memory = memories[number]
            if context == "blind":
                others = [
                    m for m, other in zip(memories, made, strict=True) if other.half != film.half
                ]
                memory = others[number % len(others)]
            asked = film.questions[: options.limit]
            if context in SLOW:
                asked = _few(asked)
            answers = _answered(model, memory, film, asked, context, options)
            outcomes.setdefault(film.half, []).extend(answers)
            write_lines(
                [
                    {
                        "film": film.name, "question": o.question.text,
                        "operator": o.question.operator, "gold": list(o.question.gold),
                        "answer": o.text, "seen": o.seen, "right": o.right, "score": o.score,
                        "cited": list(o.cited),
                    }
                    for o in answers
                ]
            )  # fmt: skip
    curves = {half: films.risk_coverage(found) for half, found in outcomes.items()}
    return {
        "suite": "answers",
        "films": len(made),
        "context": context,
        "halves": {half: films.table(found) for half, found in outcomes.items()},
        "curves": {
            half: [[round(c, 3), round(r, 3)] for c, r in _tenths(curve)]
            for half, curve in curves.items()
        },
    }


def _few(asked: Sequence[TimedQuestion]) -> tuple[TimedQuestion, ...]:
    exist = [question for question in asked if question.operator == "exists"]
    there = [question for question in exist if question.gold]
    absent = [question for question in exist if not question.gold]
    return (*there[: 2 * FEW // 3], *absent[: FEW // 3])


def _watched(film: Path, model: Any, options: EvaluationOptions) -> Path:
    """Return a film's memory, which is made first unless it is complete."""
    from streammem.engine.session import Session
    from streammem.engine.watch import watch
    from streammem.types import Segment

    memory, done = film.with_suffix(".memory"), film.with_suffix(".watched")
    if done.exists():
        return memory
    if not film.is_file():
        raise DatasetError(f"{film}: is not made yet; run eval make again")
    bar = tqdm(desc=f"{film.name}: scenes", disable=None if options.progress else True)
    with Session(model, memory=memory) as session:
        for event in watch(session, str(film)):
            bar.update(isinstance(event, Segment))
    bar.close()
    done.touch()
    return memory


class _NoDescriber:
    """Captions nothing: what could be captioned was, when the film was watched."""

    def describe(self, entries: object) -> None:
        pass


def _answered(
    model: Any,
    memory: Path,
    film: MadeFilm,
    asked: Sequence[TimedQuestion],
    context: Context,
    options: EvaluationOptions,
) -> list[Outcome]:
    """Ask a memory, each question alone."""
    from streammem.engine.session import Session
    from streammem.engine.session_config import SessionConfig

    outcomes = []
    config = SessionConfig(context="memory" if context == "blind" else context)
    with Session(model, config, memory=memory, read_only=True) as session:
        session.answerer.describer = _NoDescriber()
        for question in tqdm(asked, film.name, disable=None if options.progress else True):
            session.answerer.turns.clear()
            answer = session.ask(question.text)
            evidence = sorted(answer.evidence, key=lambda item: -item.score)
            cited = films.scenes_cited(film.edges, [(item.start, item.end) for item in evidence])
            outcomes.append(
                Outcome(
                    question,
                    read=model.text_encoder.read_question(question.text).operator
                    == question.operator,
                    right=is_right(question, answer, set(cited), film.edges),
                    seen=answer.seen,
                    cited=tuple(cited),
                    old=False,
                    text=answer.text,
                    score=evidence[0].score if evidence else 0.0,
                )
            )
    return outcomes


def _tenths(curve: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    return [curve[max(0, round(len(curve) * n / 10) - 1)] for n in range(1, 11)]


def rows_of(report: dict[str, Any]) -> Iterator[str]:
    """Write a report as text, a line an operator, then the risk at every tenth of coverage."""
    for half, table in report["halves"].items():
        columns = list(dict.fromkeys(name for figures in table.values() for name in figures))
        yield f"{half} ({report['context']})"
        yield f"  {'':12}" + "".join(f"{name:>17}" for name in columns)
        for operator, figures in table.items():
            cells = (f"{figures[n]:g}" if n in figures else "-" for n in columns)
            yield f"  {operator:12}" + "".join(f"{cell:>17}" for cell in cells)
        risks = " ".join(f"{risk:.2f}" for _, risk in report["curves"][half])
        yield f"  wrong, of the surest tenth, two tenths ... all: {risks}"


def draw_curves(report: dict[str, Any], path: Path) -> None:
    """Draw risk over coverage as a PNG, a line a half."""
    size, edge = 480, 40
    picture = Image.new("RGB", (size + 2 * edge, size + 2 * edge), "white")
    draw = ImageDraw.Draw(picture)

    def at(coverage: float, risk: float) -> tuple[float, float]:
        return edge + coverage * size, edge + (1 - risk) * size

    for tenth in range(0, 11, 2):
        value = tenth / 10
        draw.line([at(0, value), at(1, value)], fill=(220, 220, 220))
        draw.text((8, at(0, value)[1] - 6), f"{value:.1f}", fill="black")
        draw.text((at(value, 0)[0] - 8, at(0, 0)[1] + 6), f"{value:.1f}", fill="black")
    draw.text((edge, 8), "answers that are wrong, of the surest share (across)", fill="black")
    for number, (half, curve) in enumerate(report["curves"].items()):
        colour = ((60, 90, 200), (200, 80, 40))[number % 2]
        draw.line([at(c, r) for c, r in curve], fill=colour, width=2)
        draw.text((at(1, 0)[0] - 60, edge + 16 * number), half, fill=colour)
    picture.save(path)
