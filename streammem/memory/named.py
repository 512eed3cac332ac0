"""Named things: a name that was taught with pictures, and which rows show that thing.

    memory.teach(Taught("my cup", False, (TaughtPicture(jpeg, key, fingerprint),)))
    thing = NamedThing.of(memory.taught()[0], background)     # background [B, D_key]
    thing.excess(entry) >= 0                                  # the row shows it

A thing is compared by whole pictures. Nothing is written into rows: they are compared when a
question is asked, so that a name that is forgotten leaves no trace in them.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple, Self

import numpy as np

from streammem.errors import ConfigError, StoreError
from streammem.memory.database import Database
from streammem.memory.database import checksum as checksum_of
from streammem.memory.entry import Entry, unit_rows
from streammem.memory.retrieval import content_words

MAX_PICTURES = 16
"""Most pictures of a thing; the oldest go."""

MAX_NAMES, MAX_NAME = 64, 60  # things of a memory; characters of a name
LEAST_COSINE = 0.85
"""Least cosine of a taught picture and a row that shows the same thing."""

BEYOND_CHANCE = 0.05
"""By how much that cosine must exceed the taught picture's with the likest unrelated picture."""

# Measured: docs/research/assistant.md, *Named things*.

_WORD = re.compile(r"[^\W_]+(?:'s)?")
_TABLE = (
    "CREATE TABLE IF NOT EXISTS taught (name TEXT NOT NULL, number INTEGER NOT NULL, "
    "is_person INTEGER NOT NULL, segment INTEGER, picture BLOB NOT NULL, key BLOB NOT NULL, "
    "fingerprint TEXT NOT NULL, checksum BLOB NOT NULL, PRIMARY KEY (name, number))"
)


class TaughtPicture(NamedTuple):
    """A picture of a thing.

    Attributes:
        jpeg: at most 32 KiB.
        key: [D_key] float32 unit row.
        fingerprint: of the model that made the key.
        segment: id of the scene that it was cut from; None where it came from elsewhere.
    """

    jpeg: bytes
    key: np.ndarray
    fingerprint: str
    segment: int | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Taught:
    """A thing as it was taught.

    Attributes:
        name: as it was given.
        is_person: whether it is a person.
        pictures: at least one, at most ``MAX_PICTURES``.

    Raises:
        ConfigError: a name that cannot be asked for, or no picture.
    """

    name: str
    is_person: bool
    pictures: tuple[TaughtPicture, ...]

    def __post_init__(self) -> None:
        check_name(self.name)
        if not self.pictures:
            raise ConfigError(f"{self.name}: give a picture of it")


def check_name(name: str) -> None:
    """Refuse a name that cannot be asked for.

    Raises:
        ConfigError: it is one.
    """
    if not (name.isprintable() and 0 < len(name) <= MAX_NAME):
        raise ConfigError(f"name {name[:80]!r}: give one line of 1 to {MAX_NAME} letters")
    if not content_words(name):
        raise ConfigError(f"name {name!r}: give a word of its own, as in: my cup")


@dataclass(frozen=True, slots=True, eq=False)
class NamedThing:
    """What rows are compared with.

    Attributes:
        name: as it was taught.
        keys: [P, D_key] unit rows, one a picture.
        levels: [P] cosines from which on a row shows what the picture shows.
    """

    name: str
    keys: np.ndarray
    levels: np.ndarray

    @classmethod
    def of(cls, taught: Taught, background: np.ndarray) -> Self:
        """Set the levels of a thing's pictures.

        Args:
            taught: its pictures have keys of one model.
            background: [B, D_key] unit keys of unrelated pictures, B >= 1. A picture that many
                unrelated ones are like needs a higher cosine to be told from them.
        """
        keys = unit_rows(np.stack([picture.key for picture in taught.pictures]))
        chance = (keys @ np.asarray(background, np.float32).T).max(axis=1)
        return cls(taught.name, keys, np.maximum(LEAST_COSINE, chance + BEYOND_CHANCE))

    def excess(self, entry: Entry) -> float:
        """Return by how much a row's best key exceeds the level; it shows the thing from 0 on."""
        cosines = self.keys @ entry.visual_keys.T  # [P, V]
        return float((cosines - self.levels[:, None]).max())

    def is_in(self, text: str) -> bool:
        """Return whether a text holds the name, word for word, whatever its case."""
        name, words = (_WORD.findall(each.casefold()) for each in (self.name, text))
        return any(words[i : i + len(name)] == name for i in range(len(words) - len(name) + 1))


def named_in(things: Iterable[NamedThing], text: str) -> tuple[NamedThing, ...]:
    """Return the things that a text names; of names within one another the longest alone."""
    found = [thing for thing in things if thing.is_in(text)]
    longer = [
        {other.name for other in found if other is not thing and thing.is_in(other.name)}
        for thing in found
    ]
    return tuple(thing for thing, hidden in zip(found, longer, strict=True) if not hidden)


def with_pictures(before: Taught | None, taught: Taught) -> Taught:
    """Add a thing's new pictures to those that were taught before.

    Raises:
        ConfigError: the name is a person's and a thing's.
    """
    if before is None:
        return Taught(taught.name, taught.is_person, taught.pictures[-MAX_PICTURES:])
    if before.is_person != taught.is_person:
        was = "a person" if before.is_person else "no person"
        raise ConfigError(f"{taught.name}: was taught as {was}; forget the name first")
    pictures = (*before.pictures, *taught.pictures)[-MAX_PICTURES:]
    return Taught(before.name, before.is_person, pictures)


# -- on disk: a table of its own, made with the first name --


def read_taught(database: Database) -> tuple[Taught, ...]:
    """Return every thing that a memory was taught, by name.

    Raises:
        StoreError: a picture or key is damaged.
    """
    if not _is_there(database):
        return ()
    found: dict[str, list[tuple[bool, TaughtPicture]]] = {}
    query = (
        "SELECT name, number, is_person, segment, picture, key, fingerprint, checksum "
        "FROM taught ORDER BY name, number"
    )
    for *values, checksum in database.query(query):
        name, _, is_person, segment, jpeg, key, fingerprint = values
        if checksum_of(*values) != checksum:
            raise StoreError(f"{database.path}: a picture of {name!r} is damaged; forget the name")
        picture = TaughtPicture(jpeg, np.frombuffer(key, "<f4"), fingerprint, segment)
        found.setdefault(name, []).append((bool(is_person), picture))
    return tuple(
        Taught(name, pictures[0][0], tuple(picture for _, picture in pictures))
        for name, pictures in sorted(found.items(), key=lambda item: item[0].casefold())
    )


def write_taught(database: Database, taught: Taught) -> None:
    """Keep a thing in the place of what was kept under its name.

    Raises:
        StoreError: the disk is full or fails, or the memory is read-only.
    """
    with database.transaction():
        database.query(_TABLE)
        database.query("DELETE FROM taught WHERE name = ?", taught.name)
        for number, (jpeg, key, fingerprint, segment) in enumerate(taught.pictures):
            block = np.asarray(key, "<f4").tobytes()
            values = (taught.name, number, int(taught.is_person), segment, jpeg, block, fingerprint)
            marks = ", ".join("?" * (len(values) + 1))
            database.query(f"INSERT INTO taught VALUES ({marks})", *values, checksum_of(*values))


def remove_taught(database: Database, name: str) -> None:
    """Remove a thing and its pictures for good; `secure_delete` overwrites them.

    Raises:
        StoreError: as for `write_taught`.
    """
    with database.transaction():
        if _is_there(database):
            database.query("DELETE FROM taught WHERE name = ?", name)
    database.checkpoint()


def remove_taught_from(database: Database, segments: Iterable[int]) -> None:
    """Remove the pictures that were cut from these rows, which are still there.

    Within a transaction. A row stands for the scenes that were merged into it, too.
    """
    if _is_there(database):
        last = "(SELECT last FROM segments WHERE segment = ?)"
        for segment in segments:
            remove = f"DELETE FROM taught WHERE segment BETWEEN ? AND {last}"
            database.query(remove, segment, segment)


def _is_there(database: Database) -> bool:
    return bool(database.query("SELECT 1 FROM sqlite_master WHERE name = 'taught'"))
