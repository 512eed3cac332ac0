"""Reads captioned-picture folders and conversation files into records.

    source = read_source(Path("flickr8k"))  # images/ and captions.jsonl
    source.records[0].captions

No pixels are decoded here; ``features.py`` makes features.
"""

import json
import logging
import re
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from streammem.errors import DatasetError
from streammem.training.nouns import indefinite
from streammem.training.questions import QuestionRecord, questions_from_answers

log = logging.getLogger(__name__)
MAX_QUESTIONS = 6  # of one picture
TRAIN, VALIDATION = "train", "val"
LISTS = ("captions", "objects", "detected", "qa")  # keys of a row
SHOWN = {"image": "images", "video": "videos"}  # key of a row: folder beside the file
HELD_OUT_PERSONS = ("ahmad", "shaghayegh", "yin")  # of GTEA Gaze+'s seven
LABELLED, NAMED, SURE, UNSURE = 0.95, 0.8, 0.85, 0.4  # shares of things, see ``listed_things``
PLURALS = ("skis", "scissors", "bus", "stairs", "glasses", "eyeglasses", "pants", "jeans")
ALIASES = {
    "dining table": "table", "tv": "television", "potted plant": "plant", "couch": "sofa",
    "cell phone": "phone", "sports ball": "ball", "bowk": "bowl", "saladdressing": "salad dressing",
    "excercise ball": "exercise ball", "excercise machine": "exercise machine",
    "excercise equipment": "exercise equipment", "clothe": "clothes", "shelve": "shelf",
    "refridgerator": "refrigerator",
}  # fmt: skip
OBJECT_FORMS = ("A room with {}.", "A room with {}.", "There is {} in the room.")
OBJECTS_NAMED = (2, 4)  # in a sentence; a sentence with one object would fit any room


@dataclass(frozen=True, slots=True)
class Record:
    """A picture or video with its captions and questions.

    Attributes:
        name: unique within its source.
        path: of the picture or video.
        split: ``train`` or ``val``.
        captions: sentences; may be empty if there are questions.
        questions: with their answers; may be empty.
        video: whether ``path`` is a video.
        made: whether the captions were generated from a label or a list of objects.
        things: (name, share) of what is listed as there, once for each of several alike; the share
            is how likely it is there, in (0, 1].
    """

    name: str
    path: Path
    split: str
    captions: tuple[str, ...]
    questions: tuple[QuestionRecord, ...] = ()
    video: bool = False
    made: bool = False
    things: tuple[tuple[str, float], ...] = ()


@dataclass(frozen=True, slots=True)
class CaptionedSource:
    """A folder's or file's records; ``name`` names its cached features."""

    name: str
    records: tuple[Record, ...]


def read_source(place: Path) -> CaptionedSource:
    """Read a captioned-picture folder, or a conversation file if the name ends in ``.json``.

    Raises:
        DatasetError: missing or malformed; the message names file and row.
    """
    read = read_conversations if place.suffix == ".json" else read_folder
    records = tuple(read(place))
    if not records:
        raise DatasetError(f"{place}: no picture in it has a caption or a conversation")
    if len({record.name for record in records}) < len(records):
        raise DatasetError(f"{place}: lists a picture twice")
    return CaptionedSource(place.stem, records)


def read_folder(folder: Path) -> Iterator[Record]:
    """Read ``captions.jsonl``; its rows are ``{image, split, captions, objects?, label?, qa?}``.

    Or, without captions, ``labels.jsonl``: ``{image, qa?, detected?, objects?, source?}``, with
    ``detected`` as ``[[name, score, box]]`` and ``objects`` as ``[[name, box]]``.

    A folder whose rows are all ``train`` is split by a checksum of the file name, one picture in
    five for validation; frames with a ``source`` by the person that it begins with.
    """
    captioned = not (folder / "labels.jsonl").exists()
    rows = list(_rows(folder / ("captions.jsonl" if captioned else "labels.jsonl")))
    own_split = any(row.get("split") == VALIDATION for _, row in rows)
    for where, row in rows:
        name = _text(row, "image", where)
        split = _text(row, "split", where) if own_split else checksum_split(name)
        if "source" in row:
            person = _text(row, "source", where).split("_")[0]
            split = VALIDATION if person in HELD_OUT_PERSONS else TRAIN
        rng = np.random.default_rng(zlib.crc32(name.encode()))
        _check_lists(row, where)
        try:
            captions = tuple(record_captions(row)) if captioned else ()
            questions = tuple(questions_from_answers(row.get("qa") or (), rng, MAX_QUESTIONS))
            things = tuple(listed_things(row))
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise DatasetError(f"{where}: malformed captions, objects or qa ({error})") from error
        if split in (TRAIN, VALIDATION) and (captions or questions or things):
            path = _inside(folder / "images", name, where)
            made = captioned and bool(row.get("label") or row.get("objects"))
            yield Record(name, path, split, captions, questions, made=made, things=things)


def read_conversations(file: Path) -> Iterator[Record]:
    """Read LLaVA's form: a JSON list of ``{image | video, conversations: [{from, value}, ...]}``.

    Pictures lie in ``images/`` beside the file, videos in ``videos/``; rows that share one are
    joined. Each question becomes a record of its own, without the turns before it. Rows without
    picture and video are skipped and counted in the log.
    """
    try:
        rows = json.loads(file.read_text())
    except (OSError, ValueError) as error:
        raise DatasetError(f"{file}: not a JSON list of conversations ({error})") from error
    if not isinstance(rows, list):
        raise DatasetError(f"{file}: not a JSON list of conversations")
    questions: dict[tuple[str, str], list[QuestionRecord]] = {}
    skipped = 0
    for number, row in enumerate(rows):
        where = f"{file}, row {number}"
        if not isinstance(row, dict):
            raise DatasetError(f"{where}: not an object")
        kind = next((key for key in SHOWN if key in row), None)
        if kind is None:
            skipped += 1
            continue
        questions.setdefault((SHOWN[kind], _text(row, kind, where)), []).extend(
            _conversation_questions(row, where)
        )
    if skipped:
        log.warning("%s: %d rows without a picture or video are skipped", file, skipped)
    for (folder, name), asked in questions.items():
        path = _inside(file.parent / folder, name, str(file))
        video = folder == SHOWN["video"]
        yield Record(name, path, checksum_split(name), (), tuple(asked[:MAX_QUESTIONS]), video)


def checksum_split(name: str) -> str:
    """Split by name: ``val`` for one name in five, the same on every machine."""
    return VALIDATION if zlib.crc32(name.encode()) % 5 == 0 else TRAIN


def record_captions(row: dict[str, Any]) -> list[str]:
    """Return a row's captions as sentences; rows with objects or a label only get plain ones."""
    if row.get("label"):
        label = row["label"].replace("_", " ")
        forms = ("A {}.", "This is a {}.", "A {} in a house.", "The inside of a {}.")
        return [form.format(label) for form in forms]
    if row.get("objects"):
        return _object_captions(row["image"], row["objects"])
    return [caption for text in row["captions"] if (caption := sentence(text))]


def listed_things(row: dict[str, Any]) -> Iterator[tuple[str, float]]:
    """Yield (name, share) of what a row lists: a label, objects, and what a detector named."""
    if row.get("label"):
        yield thing_name(row["label"]), LABELLED
    for listed in row.get("objects") or ():
        if isinstance(listed, str):  # several people's lists, partly odd
            yield thing_name(listed), NAMED
        else:
            yield thing_name(listed[0]), 1.0
    for name, score, *_ in row.get("detected") or ():
        # Of its names at a score of 0.5 and more 78% are in people's captions.
        yield thing_name(name), float(score) * (SURE if score >= 0.5 else UNSURE)


def thing_name(text: str) -> str:
    """Normalise a thing's name: small letters, one of it, one name of several for the same."""
    name = " ".join(text.lower().replace("_", " ").split())
    if len(name) > 3 and name.endswith("s") and not name.endswith("ss"):
        name = name if name in PLURALS else name[:-1]
    return ALIASES.get(name, name)


def sentence(text: str) -> str:
    """Normalise a caption: one space, a capital, a full stop."""
    text = re.sub(r"\s+([.,!?;:'])", r"\1", " ".join(text.split())).rstrip(" .,;!?")
    return f"{text[:1].upper()}{text[1:]}." if text else ""


def _object_captions(name: str, objects: Sequence[str]) -> list[str]:
    """Make sentences that name some of the objects listed for a picture."""
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    plain = [o.replace("_", " ") for o in objects if len(o.split()) <= 2 and o.isascii()]
    if not plain:
        return []
    captions = []
    for form in OBJECT_FORMS:
        least, most = OBJECTS_NAMED
        count = min(len(plain), int(rng.integers(least, most + 1)))
        named = [indefinite(o) for o in rng.choice(plain, count, replace=False)]
        listed = " and ".join([", ".join(named[:-1]), named[-1]] if len(named) > 1 else named)
        captions.append(sentence(form.format(listed)))
    return captions


def _conversation_questions(row: dict[str, Any], where: str) -> Iterator[QuestionRecord]:
    try:
        parts = [(part["from"], part["value"].strip()) for part in row["conversations"]]
    except (KeyError, TypeError, AttributeError) as error:
        raise DatasetError(f"{where}: needs conversations of {{from, value}}") from error
    for (asker, question), (_, answer) in zip(parts[::2], parts[1::2], strict=False):
        question = question.replace("<image>", "").replace("<video>", "").strip()
        if asker == "human" and question and answer:
            yield QuestionRecord(question, answer)


def _rows(table: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    try:
        lines = table.read_text().splitlines()
    except OSError as error:
        raise DatasetError(
            f"{table}: cannot be read ({error.strerror}); is this a captioned-picture folder?"
        ) from error
    for number, line in enumerate(lines, start=1):
        where = f"{table}, line {number}"
        try:
            row = json.loads(line)
        except ValueError as error:
            raise DatasetError(f"{where}: not JSON ({error})") from error
        if not isinstance(row, dict):
            raise DatasetError(f"{where}: not an object")
        yield where, row


def _check_lists(row: dict[str, Any], where: str) -> None:
    """Check that lists are lists, and what a detector named.

    Raises:
        DatasetError: the message names the key.
    """
    for key in LISTS:
        if not isinstance(row.get(key) or [], list):
            raise DatasetError(f"{where}: malformed {key}: needs a list")
    for entry in row.get("detected") or ():
        match entry:
            case [str(), int() | float() as score, *_] if 0 <= score <= 1:
                pass
            case _:
                raise DatasetError(
                    f"{where}: malformed detected: {entry} is not [name, score, box] "
                    "with a score in [0, 1]"
                )


def _text(row: dict[str, Any], key: str, where: str) -> str:
    value = row.get(key)
    if not isinstance(value, str) or not value:
        raise DatasetError(f"{where}: needs {key}, a string")
    return value


def _inside(images: Path, name: str, where: str) -> Path:
    path = images / name
    if not path.resolve().is_relative_to(images.resolve()):
        raise DatasetError(f"{where}: {name} lies outside {images}")
    return path
