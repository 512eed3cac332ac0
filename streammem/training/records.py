"""What people said of pictures: captioned folders and conversation files, read into records.

No pixels are decoded here; features are made in ``features.py``.
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
from streammem.training.questions import Turn, turns_from_answers

log = logging.getLogger(__name__)
MAX_TURNS = 6  # of one picture
TRAIN, VALIDATION = "train", "val"
SHOWN = {"image": "images", "video": "videos"}  # key of a row: folder beside the file
OBJECT_FORMS = ("A room with {}.", "A room with {}.", "There is {} in the room.")
OBJECTS_NAMED = (2, 4)  # in a sentence; one alone would be the likeliest thing to say of any room


@dataclass(frozen=True, slots=True)
class Record:
    """A picture and what is said of it.

    Attributes:
        name: unique within its source.
        path: of the picture or video.
        split: ``train`` or ``val``.
        captions: sentences; may be empty if there are turns.
        turns: questions with their answers; may be empty.
        video: whether ``path`` is a video.
        made: whether the captions were made from a label or a list; no person worded them.
    """

    name: str
    path: Path
    split: str
    captions: tuple[str, ...]
    turns: tuple[Turn, ...] = ()
    video: bool = False
    made: bool = False


@dataclass(frozen=True, slots=True)
class Source:
    """A folder's or file's records; ``name`` names its cached features."""

    name: str
    records: tuple[Record, ...]


def read_source(place: Path) -> Source:
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
    return Source(place.stem, records)


def read_folder(folder: Path) -> Iterator[Record]:
    """Read ``captions.jsonl``; its rows are ``{image, split, captions, objects?, label?, qa?}``.

    A folder whose rows are all ``train`` is split by a checksum of the file name, one picture in
    five for validation.
    """
    rows = list(_rows(folder / "captions.jsonl"))
    own_split = any(row.get("split") == VALIDATION for _, row in rows)
    for where, row in rows:
        name = _text(row, "image", where)
        split = _text(row, "split", where) if own_split else checksum_split(name)
        rng = np.random.default_rng(zlib.crc32(name.encode()))
        try:
            captions = tuple(record_captions(row))
            turns = tuple(turns_from_answers(row.get("qa") or (), rng, MAX_TURNS))
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise DatasetError(f"{where}: malformed captions, objects or qa ({error})") from error
        if split in (TRAIN, VALIDATION) and (captions or turns):
            path = _inside(folder / "images", name, where)
            made = bool(row.get("label") or row.get("objects"))
            yield Record(name, path, split, captions, turns, made=made)


def read_conversations(file: Path) -> Iterator[Record]:
    """Read LLaVA's form: a JSON list of ``{image | video, conversations: [{from, value}, ...]}``.

    Pictures lie in ``images/`` beside the file, videos in ``videos/``; rows that share one are
    joined. Each question is asked on its own, so an answer that leans on an earlier turn is read
    without it. Rows with neither are left out and counted in the log.
    """
    try:
        rows = json.loads(file.read_text())
    except (OSError, ValueError) as error:
        raise DatasetError(f"{file}: not a JSON list of conversations ({error})") from error
    if not isinstance(rows, list):
        raise DatasetError(f"{file}: not a JSON list of conversations")
    turns: dict[tuple[str, str], list[Turn]] = {}
    skipped = 0
    for number, row in enumerate(rows):
        where = f"{file}, row {number}"
        if not isinstance(row, dict):
            raise DatasetError(f"{where}: not an object")
        kind = next((key for key in SHOWN if key in row), None)
        if kind is None:
            skipped += 1
            continue
        turns.setdefault((SHOWN[kind], _text(row, kind, where)), []).extend(_turns(row, where))
    if skipped:
        log.warning("%s: %d rows without a picture or video are left out", file, skipped)
    for (folder, name), said in turns.items():
        path = _inside(file.parent / folder, name, str(file))
        video = folder == SHOWN["video"]
        yield Record(name, path, checksum_split(name), (), tuple(said[:MAX_TURNS]), video)


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
    return [said for text in row["captions"] if (said := sentence(text))]


def sentence(text: str) -> str:
    """Normalise a caption: one space, a capital, a full stop."""
    text = re.sub(r"\s+([.,!?;:'])", r"\1", " ".join(text.split())).rstrip(" .,;!?")
    return f"{text[:1].upper()}{text[1:]}." if text else ""


def _object_captions(name: str, objects: Sequence[str]) -> list[str]:
    """Make sentences that name objects which people said are there."""
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    plain = [o.replace("_", " ") for o in objects if len(o.split()) <= 2 and o.isascii()]
    if not plain:
        return []
    captions = []
    for form in OBJECT_FORMS:
        least, most = OBJECTS_NAMED
        count = min(len(plain), int(rng.integers(least, most + 1)))
        named = [_with_article(o) for o in rng.choice(plain, count, replace=False)]
        listed = " and ".join([", ".join(named[:-1]), named[-1]] if len(named) > 1 else named)
        captions.append(sentence(form.format(listed)))
    return captions


def _with_article(noun: str) -> str:
    if noun.endswith("s") and not noun.endswith("ss"):
        return noun
    return f"an {noun}" if noun[0] in "aeiou" else f"a {noun}"


def _turns(row: dict[str, Any], where: str) -> Iterator[Turn]:
    try:
        said = [(part["from"], part["value"].strip()) for part in row["conversations"]]
    except (KeyError, TypeError, AttributeError) as error:
        raise DatasetError(f"{where}: needs conversations of {{from, value}}") from error
    for (asker, question), (_, answer) in zip(said[::2], said[1::2], strict=False):
        question = question.replace("<image>", "").replace("<video>", "").strip()
        if asker == "human" and question and answer:
            yield Turn(question, answer)


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
