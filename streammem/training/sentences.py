"""Sentences that belong to no picture, read from text files and tables and embedded once.

    texts = read_sentences(Path("captions.csv"), "caption")
    sentences = embed_sentences(texts, open_encoder, "all-minilm-l6-v2", Path("features"))

``text.py`` trains on them. The files are not trusted.
"""

import csv
import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

from streammem.errors import DatasetError
from streammem.models.backbones.text import TEXT_DIM, SentenceEncoder
from streammem.training.records import sentence

MOST_CHARACTERS = 500  # of a sentence
MOST_LINE_BYTES = 1 << 16
MOST_SENTENCES = 1_000_000  # of a file; their embeddings take 768 MB on disk
EMBEDDED_AT_ONCE = 2048  # a kill loses at most so many


class Sentences(NamedTuple):
    """Sentences, and their embeddings [N, E] float16, memory-mapped, unit rows."""

    texts: Sequence[str]
    embeddings: np.ndarray


def read_sentences(path: Path, column: str = "") -> list[str]:
    """Read sentences, each once, in their order, with a capital and a full stop.

    Args:
        path: UTF-8; one sentence a line, or a CSV table with a heading if ``column`` is given.
        column: its heading.

    Raises:
        DatasetError: a file or line that cannot be read or is too long, no such column, or no
            sentence; the message names file and line.
    """
    lines = _lines(path)
    found: dict[str, None] = {}
    for number, text in _column(lines, column, path) if column else enumerate(lines, start=1):
        found_text = sentence(text)
        if len(found_text) > MOST_CHARACTERS or not found_text.isprintable():
            reason = f"a sentence has at most {MOST_CHARACTERS} characters, all of them printable"
            raise DatasetError(f"{path}, line {number}: {reason}")
        if any(letter.isalpha() for letter in found_text):
            found[found_text] = None
        if len(found) > MOST_SENTENCES:
            raise DatasetError(
                f"{path}, line {number}: more than {MOST_SENTENCES} sentences; split the file"
            )
    if not found:
        raise DatasetError(f"{path}: no sentence in it")
    return list(found)


def _lines(path: Path) -> Iterator[str]:
    """Yield lines with their ends, reading at most ``MOST_LINE_BYTES`` of each."""
    number = 0
    try:
        with open(path, "rb") as file:
            while line := file.readline(MOST_LINE_BYTES + 1):
                number += 1
                if len(line) > MOST_LINE_BYTES:
                    raise DatasetError(
                        f"{path}, line {number}: longer than {MOST_LINE_BYTES} bytes; "
                        "is this a text file with one sentence a line?"
                    )
                yield line.decode("utf-8-sig" if number == 1 else "utf-8")
    except OSError as error:
        raise DatasetError(f"{path}: cannot be read ({error.strerror})") from error
    except UnicodeDecodeError as error:
        raise DatasetError(f"{path}, line {number}: not UTF-8 ({error.reason})") from error


def _column(lines: Iterator[str], column: str, path: Path) -> Iterator[tuple[int, str]]:
    """Yield (line, text) of one column; a row that is too short to have it is skipped."""
    rows = csv.reader(lines)
    try:
        heading = next(rows, [])
        if column not in heading:
            known = ", ".join(heading)[:200]
            raise DatasetError(f"{path}, line 1: no column {column!r}; there are: {known}")
        place = heading.index(column)
        for row in rows:
            if len(row) > place:
                yield rows.line_num, row[place]
    except csv.Error as error:
        raise DatasetError(f"{path}, line {rows.line_num}: not CSV ({error})") from error


def embed_sentences(
    texts: Sequence[str], encoder: Callable[[], SentenceEncoder], name: str, folder: Path
) -> Sentences:
    """Embed sentences, or continue a killed run of it; the result is cached and memory-mapped.

    Args:
        texts: at least one.
        encoder: opens the sentence encoder; called only if embeddings are missing.
        name: of the encoder; a part of the file's checksum, as the sentences are.
        folder: made if need be.
    """
    digest = hashlib.sha256("\n".join([name, *texts]).encode()).hexdigest()[:16]
    path, counter = (folder / f"sentences-{digest}.{end}" for end in ("npy", "done"))
    folder.mkdir(parents=True, exist_ok=True)
    done = int(counter.read_text()) if counter.exists() and path.exists() else 0
    if not done:
        np.lib.format.open_memmap(path, mode="w+", dtype="f2", shape=(len(texts), TEXT_DIM))
    if done < len(texts):
        opened, rows = encoder(), np.load(path, mmap_mode="r+")
        with tqdm(total=len(texts), initial=done, desc="sentences", unit="sentence") as bar:
            for begin in range(done, len(texts), EMBEDDED_AT_ONCE):
                batch = texts[begin : begin + EMBEDDED_AT_ONCE]
                rows[begin : begin + len(batch)] = opened.encode(batch).numpy()
                rows.flush()
                scratch = counter.with_suffix(".part")
                scratch.write_text(str(begin + len(batch)))
                os.replace(scratch, counter)  # last, when the rows that it counts are on disk
                bar.update(len(batch))
    return Sentences(texts, np.load(path, mmap_mode="r"))
