"""What a checkpoint's words.txt and lexicon.txt list, checked: names of things and their meanings.

What reads these names off tokens and keys is in ``tiny/words.py``.
"""

from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from reprlib import repr as shown

from streammem.errors import CheckpointError
from streammem.models.tiny.words import NameMeaning

# Bounds of what a file that came from anywhere may ask for.
MAX_LIST_BYTES = 1 << 20
MAX_NAME = 100  # characters
MAX_CLASSES = 100_000  # of all names of a lexicon together


def read_names(path: Path) -> list[str]:
    """Read names of things, one a line.

    Raises:
        CheckpointError: the file is missing or too large, or a name is malformed or repeated.
    """
    names: dict[str, None] = {}
    for where, name in _lines(path):
        _check_name(name, names, where)
        names[name] = None
    return list(names)


def read_lexicon(path: Path, words: Collection[str], classes: int) -> dict[str, NameMeaning]:
    """Read a lexicon: name, word and classes such as 1,4-7 a line, between tabs.

    Args:
        path: of the file.
        words: names that may stand for others.
        classes: how many the classifier has.

    Raises:
        CheckpointError: as ``read_names``, or a word or a class that there is not.
    """
    words = frozenset(words)
    lexicon: dict[str, NameMeaning] = {}
    room = MAX_CLASSES
    for where, line in _lines(path):
        parts = line.split("\t")
        if len(parts) != 3:
            raise CheckpointError(f"{where}: not a name, a word and classes, between tabs")
        name, word, listed = parts
        _check_name(name, lexicon, where)
        if word and word not in words:
            raise CheckpointError(f"{where}: {shown(word)} is none of the checkpoint's words")
        chosen = _classes(listed, classes, room, where)
        room -= len(chosen)
        lexicon[name] = NameMeaning(word, chosen)
    return lexicon


def lexicon_lines(lexicon: Mapping[str, NameMeaning]) -> list[str]:
    """Return the lines of a lexicon that ``read_lexicon`` reads."""
    lines = []
    for name, (word, classes) in lexicon.items():
        spans: list[list[int]] = []
        for number in classes:
            if spans and number == spans[-1][1] + 1:
                spans[-1][1] = number
            else:
                spans.append([number, number])
        chosen = ",".join(f"{a}-{b}" if a < b else f"{a}" for a, b in spans)
        lines.append(f"{name}\t{word}\t{chosen}")
    return lines


def _classes(listed: str, classes: int, room: int, where: str) -> list[int]:
    """Read numbers of classes, of which at most ``room`` are made."""
    chosen: list[int] = []
    for span in listed.split(",") if listed else ():
        ends = span.split("-")
        try:
            first, last = int(ends[0]), int(ends[-1])
        except ValueError as error:
            raise CheckpointError(f"{where}: {shown(span)} is no class") from error
        if len(ends) > 2 or not 0 <= first <= last < classes:
            raise CheckpointError(f"{where}: {shown(span)} is none of the {classes} classes")
        if len(chosen) + last - first >= room:
            raise CheckpointError(f"{where}: the lexicon has more than {MAX_CLASSES} classes")
        chosen += range(first, last + 1)
    if len(set(chosen)) < len(chosen):
        raise CheckpointError(f"{where}: a class is listed twice")
    return chosen


def _check_name(name: str, taken: Collection[str], where: str) -> None:
    if not name or name != name.strip() or len(name) > MAX_NAME or not name.isprintable():
        raise CheckpointError(f"{where}: {shown(name)} is no name of 1 to {MAX_NAME} characters")
    if name in taken:
        raise CheckpointError(f"{where}: {shown(name)} is listed twice")


def _lines(path: Path) -> Iterator[tuple[str, str]]:
    """Yield each line with where it stands, for messages."""
    try:
        with path.open("rb") as file:
            content = file.read(MAX_LIST_BYTES + 1)
        text = content.decode()
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: missing or corrupt ({error}); get it again") from error
    if len(content) > MAX_LIST_BYTES:
        raise CheckpointError(f"{path}: larger than {MAX_LIST_BYTES} bytes")
    for number, line in enumerate(text.splitlines(), 1):
        yield f"{path}, line {number}", line
