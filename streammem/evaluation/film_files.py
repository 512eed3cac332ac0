"""Film files: made of clips and photos, with questions of known truth.

    make_films(Path("clips"), Path("films"), MakeOptions(photos=Path("flickr8k"), films=2))
    found = read_suite("films", Path("films"))          # asked by asking.py, as any suite

The clips, and the photos, are split in two halves: films of the half ``fit`` are for fitting,
those of ``report`` for figures. A folder of films has ``films.jsonl``, a line a film with its
scenes, what is said in them, and its questions; what is said stands in subtitles beside the film.
"""

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import av
import numpy as np
from PIL import Image
from tqdm import tqdm

from streammem.errors import ConfigError, DatasetError
from streammem.evaluation import films
from streammem.evaluation.datasets import read_photo, read_photos
from streammem.evaluation.questions import SuiteQuestion
from streammem.evaluation.timelines import TimedQuestion
from streammem.types import TimeSpan

WIDTH, HEIGHT, FPS = 640, 360, 25
HALVES = ("fit", "report")
LIST = "films.jsonl"
MAX_PHOTOS = 400
MAX_MINUTES = 240


@dataclass(frozen=True, slots=True)
class MakeOptions:
    """What films are made.

    Attributes:
        photos: a data folder whose validation photos come between the clips; see ``read_photos``.
        films: of each half, >= 1.
        minutes: length of a film, in [1, 240].
        limit: photos at most.
        seed: equal seeds make equal films.
        fps: frames a second of the files, in [2, 60]. Fewer make long films in a fraction of the
            time; scenes and questions stay.
        progress: show a bar on stderr, where that is a terminal.

    Raises:
        ConfigError: a value out of range.
    """

    photos: Path | None = None
    films: int = 1
    minutes: float = 5.0
    limit: int = MAX_PHOTOS
    seed: int = 0
    fps: int = FPS
    progress: bool = True

    def __post_init__(self) -> None:
        if self.films < 1 or not 1 <= self.minutes <= MAX_MINUTES or self.limit < 1:
            raise ConfigError(f"films: films >= 1, minutes in [1, {MAX_MINUTES}], limit >= 1")
        if not 2 <= self.fps <= 60:
            raise ConfigError(f"films: {self.fps} frames a second; give a number in [2, 60]")


# -- making --


def read_clips(folder: Path) -> list[films.FilmClip]:
    """Read clips of one shot: ``manifest.jsonl`` has rows {file, caption, seconds, multi_shot}.

    Raises:
        DatasetError: the table is missing or malformed, or holds fewer than four clips.
    """
    table = folder / "manifest.jsonl"
    try:
        rows = [json.loads(line) for line in table.read_text().splitlines()]
        found = [
            films.FilmClip(str(row["file"]), (str(row["caption"]),), float(row["seconds"]) - 0.05)
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
        folder: of clips, see ``read_clips``; or of photos alone, see ``read_photos``.
        out: made if need be.
        options: see ``MakeOptions``.

    Returns:
        The files. A film is a whole file or none; after an interruption the same call goes on.

    Raises:
        DatasetError: a folder is malformed.
        ConfigError: ``out`` holds films of other clips or options.
    """
    # 1. Clips and photos, each split in two.
    has_photos = (folder / "captions.jsonl").is_file()
    alone = has_photos and not (folder / "manifest.jsonl").is_file()
    if alone and options.photos is not None:
        raise ConfigError(f"{folder}: holds photos, and no clips that --photos could come between")
    clips = [] if alone else read_clips(folder)
    photo_folder = folder if alone else options.photos
    photos = []
    if photo_folder is not None:
        for photo in read_photos(photo_folder, "val")[: options.limit]:
            photos.append(films.FilmClip(str(photo.path.resolve()), photo.captions))
    if len(clips) + len(photos) < 4:
        raise DatasetError(f"{folder}: needs four photos, and has {len(photos)} of split val")
    halves: dict[str, list[films.FilmClip]] = {half: [] for half in HALVES}
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
            questions = [asdict(q) for q in films.ask_along(film, own, seed=seed)]
            row = {
                "film": path.name, "half": half, "fps": options.fps, "scenes": scenes,
                "said": [cue._asdict() for cue in film.cues], "questions": questions,
            }  # fmt: skip
            lines.append(f"{json.dumps(row)}\n")
    out.mkdir(parents=True, exist_ok=True)
    if (out / LIST).is_file() and (out / LIST).read_text() != "".join(lines):
        raise ConfigError(f"{out}: holds films of other clips or options; give a new folder")
    (out / LIST).write_text("".join(lines))
    # 3. Files.
    for path, film, own in plans:
        if film.cues:
            path.with_suffix(".srt").write_text(_subtitles(film), "utf-8")
        if path.exists():
            continue
        # A scene is shown from its edge to the next, to a frame: lengths that are rounded one by
        # one would add up to seconds in a film of an hour.
        counts = np.diff(np.round(film.edges * options.fps).astype(int)).tolist()
        shots = list(zip(film.scenes, counts, strict=True))
        bar = tqdm(shots, path.name, disable=None if options.progress else True)
        pictures = (
            picture
            for scene, count in bar
            for picture in _pictures(folder / own[scene.clip].name, scene, count, options.fps)
        )
        write(path, pictures, options.fps)
    return [path for path, *_ in plans]


def _pictures(path: Path, scene: films.FilmScene, count: int, fps: int) -> Iterator[np.ndarray]:
    """Yield so many of a scene: of a clip its frames, of a photo a window that moves over it."""
    if scene.move in ("plain", "mirrored"):
        step, num_given, picture = -1 if scene.move == "mirrored" else 1, 0, None
        for picture in islice(letterboxed(path, scene.start, scene.end, fps), count):
            num_given += 1
            yield picture[:, ::step]
        if picture is None:
            raise DatasetError(f"{path}: has no picture at {scene.start:.1f} s, see manifest.jsonl")
        for _ in range(count - num_given):  # its last one stays
            yield picture[:, ::step]
        return
    photo = Image.fromarray(read_photo(path))
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


def letterboxed(path: Path, start: float, end: float, fps: int = FPS) -> Iterator[np.ndarray]:
    """Yield [H, W, 3] uint8 pictures, ``fps`` a second, of the frames shown in [start, end) s."""
    num_given = 0
    with av.open(str(path)) as container:
        container.streams.video[0].thread_count = 1
        shown = picture = None
        for frame in container.decode(video=0):
            while shown is not None and start + num_given / fps < min(frame.time, end):
                picture = _fitted(shown) if picture is None else picture
                yield picture
                num_given += 1
            if frame.time >= end:
                return
            if frame.time >= start - 1:  # earlier ones are never shown
                shown, picture = frame, None
        if shown is not None:
            yield _fitted(shown)


def _fitted(frame: av.VideoFrame) -> np.ndarray:
    scale = min(WIDTH / frame.width, HEIGHT / frame.height)
    width, height = round(frame.width * scale), round(frame.height * scale)
    return _framed(
        frame.to_ndarray(format="rgb24", width=width, height=height, interpolation="LANCZOS")
    )


def _framed(small: np.ndarray) -> np.ndarray:
    """Put a picture that fits into the middle of a black one."""
    height, width = small.shape[:2]
    left, top = (WIDTH - width) // 2, (HEIGHT - height) // 2
    picture = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    picture[top : top + height, left : left + width] = small
    return picture


def write(video: Path, pictures: Iterable[np.ndarray], fps: int = FPS) -> None:
    """Encode [H, W, 3] uint8 pictures, ``fps`` a second; the file appears when it is complete."""
    unfinished = video.with_name(f"{video.stem}.part{video.suffix}")
    with av.open(str(unfinished), "w") as container:
        options = {"crf": "20", "preset": "veryfast"}
        stream = container.add_stream("libx264", rate=fps, options=options)
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        stream.thread_count = 1
        for picture in pictures:
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    unfinished.replace(video)


def _subtitles(film: films.Film) -> str:
    """Write what is said as SubRip."""

    def stamp(seconds: float) -> str:
        whole, thousandths = divmod(round(1000 * seconds), 1000)
        clock = f"{whole // 3600:02}:{whole // 60 % 60:02}:{whole % 60:02}"
        return f"{clock},{thousandths:03}"

    starts = [float(film.edges[cue.scene]) for cue in film.cues]
    return "\n".join(
        f"{number}\n{stamp(start + 0.2)} --> {stamp(start + films.CUE_S - 0.2)}\n{cue.text}\n"
        for number, (start, cue) in enumerate(zip(starts, film.cues, strict=True), 1)
    )


# -- asking --


def suite_questions(row: Mapping[str, Any]) -> Iterator[SuiteQuestion]:
    """Yield the questions of a film as a line of ``films.jsonl`` has them.

    Raises:
        KeyError, TypeError, ValueError: it is malformed.
    """
    edges = np.cumsum([0.0, *(scene["end"] - scene["start"] for scene in row["scenes"])])
    for number, fields in enumerate(row["questions"]):
        asked = TimedQuestion(**{**fields, "gold": tuple(fields["gold"])})
        things = ("everyday things",) if asked.common else ()
        yield SuiteQuestion(
            id=f"{Path(row['film']).stem}-{number}",
            video=row["film"],
            text=asked.text,
            time=asked.time,
            categories=(asked.operator, *things, f"half: {row['half']}"),
            evidence=tuple(TimeSpan(float(edges[i]), float(edges[i + 1])) for i in asked.gold),
            kind="recall" if asked.gold else "never",
            check="timeline",
            later=asked.later,
            truth=(asked, edges),
            cluster=f"{row['film']}: {asked.thing}" if asked.thing else "",
        )
