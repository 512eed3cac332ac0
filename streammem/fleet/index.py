"""An archive: a folder with one memory for each video file, and a list of what was made of which.

    with Archive.open("archive") as archive:
        for file in archive.missing(find_files(["films"]), made_with):
            ...                                   # a memory at archive.unfinished(file)
            archive.keep(file)

A file is known by its content, so that one which was moved, renamed or only touched is not read
again. A memory has its place once it is whole; what an interrupted run left is made anew.
"""

import json
import os
import re
import shutil
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from hashlib import blake2b
from pathlib import Path
from typing import Literal, Self

from streammem.errors import ConfigError, SourceError, StoreError
from streammem.memory.folder import WriterLock, is_memory, write_file

LIST, UNFINISHED = "archive.jsonl", ".unfinished-"
SUFFIXES = frozenset(
    ".mp4 .m4v .mov .mkv .webm .avi .ts .m2ts .mts .mpg .mpeg .flv .wmv .asf .3gp .ogv .mxf".split()  # noqa: SIM905
)
BLOCK, FRESH_S = 1 << 20, 2.0

FileState = Literal["whole", "broken", "unreadable", "failed"]


@dataclass(frozen=True, slots=True)
class File:
    """A video file and what came of it.

    Attributes:
        path: absolute.
        content: digest of its bytes.
        made_with: what decides the memory besides: the model, the options.
        state: ``whole``; ``broken`` (the file broke off, what it had is kept); ``unreadable`` (no
            video, now and later); ``failed`` for another reason, such as a full disk: tried again.
        reason: why it is not whole.
        memory: name of the memory in the archive; empty without one.
        seconds: of video.
        stamp: size, time of change and inode of the file when its bytes were read; () if unknown.
            While they are the same, so is its content.
    """

    path: str
    content: str
    made_with: str = ""
    state: FileState = "failed"
    reason: str = ""
    memory: str = ""
    seconds: float = 0.0
    stamp: tuple[int, ...] = ()


def find_files(paths: Iterable[str | Path]) -> list[Path]:
    """Return the video files that paths name: files as they are, folders by the files' names.

    Raises:
        SourceError: a path is neither, or nothing is found.
    """
    found: dict[Path, None] = {}
    for path in map(Path, paths):
        if path.is_dir():
            inside = sorted(p for p in path.rglob("*") if p.suffix.lower() in SUFFIXES)
            found |= dict.fromkeys(p.resolve() for p in inside if p.is_file())
        elif path.is_file():
            found[path.resolve()] = None
        else:
            raise SourceError(f"{path}: no such file or folder")
    if not found:
        raise SourceError("no video files there; name them, or folders that hold some")
    return list(found)


def content_of(path: Path) -> str:
    """Return the digest of a file's bytes.

    Raises:
        OSError: it cannot be read.
    """
    digest = blake2b(digest_size=16)
    with path.open("rb") as file:
        while block := file.read(BLOCK):
            digest.update(block)
    return digest.hexdigest()


def stamp_of(path: Path) -> tuple[int, ...]:
    """Return what tells cheaply that a file was changed: size, times of change, inode, device.

    The inode's own time is in it, since a copy or an archiver may set the file's back. A file that
    was written within ``FRESH_S`` has none: a clock's tick may hide its next change.

    Raises:
        OSError: it cannot be read.
    """
    found = path.stat()
    if time.time() - max(found.st_mtime, found.st_ctime) < FRESH_S:
        return ()
    return found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino, found.st_dev


class Archive:
    """A folder of memories; `open` takes the right to write to it.

    Attributes:
        folder: where it is.
        files: what is known of each file, by path.
    """

    def __init__(self, folder: Path, lock: WriterLock) -> None:
        self.folder, self._lock = folder, lock
        self.files: dict[str, File] = {}

    @classmethod
    def open(cls, folder: Path) -> Self:
        """Open or make an archive.

        Raises:
            ConfigError: the folder is a memory itself, or cannot be made.
            StoreError: another process writes to it, or its list is damaged.
        """
        if is_memory(folder):
            raise ConfigError(f"{folder} is a memory; give a folder for many")
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(f"{folder}: cannot be made ({error.strerror})") from error
        archive = cls(folder, WriterLock(folder))
        try:
            archive._read()
            for left in folder.glob(f"{UNFINISHED}*"):
                shutil.rmtree(left, ignore_errors=True)
        except BaseException:
            archive.close()
            raise
        return archive

    def identify(self, path: Path, made_with: str) -> File:
        """Return a file as it is now; its bytes are read where it is new or was changed.

        Args:
            path: absolute.
            made_with: see ``File``.

        Raises:
            OSError: it cannot be read.
        """
        stamp, known = stamp_of(path), self.files.get(str(path))
        if known and stamp and known.stamp == stamp and known.content:
            return File(str(path), known.content, made_with, stamp=stamp)
        return File(str(path), content_of(path), made_with, stamp=stamp)

    def missing(self, files: Sequence[File]) -> Iterator[File]:
        """Yield those of which there is no memory yet; one that was moved is known again."""
        known = {(f.content, f.made_with): f for f in self.files.values() if f.state != "failed"}
        for file in files:
            made = known.get((file.content, file.made_with))
            if made is None or (made.memory and not is_memory(self.folder / made.memory)):
                yield file
            elif (made.path, made.stamp) != (file.path, file.stamp):
                if made.path != file.path and not Path(made.path).exists():
                    self.files.pop(made.path, None)
                self._put(replace(made, path=file.path, stamp=file.stamp))

    def unfinished(self, file: File) -> Path:
        """Return where the memory of a file is made."""
        return self.folder / f"{UNFINISHED}{self.name_of(file)}"

    def name_of(self, file: File) -> str:
        """Return the name of a file's memory: the file's own, and a digest that tells it apart."""
        stem = re.sub(r"[^\w.-]+", "_", Path(file.path).stem).strip("._") or "video"
        digest = blake2b(f"{file.content} {file.made_with}".encode(), digest_size=4).hexdigest()
        return f"{stem[:80]}-{digest}"

    def keep(self, file: File) -> None:
        """Put a finished memory in its place; an earlier one of the same file goes.

        Raises:
            StoreError: it cannot be moved.
        """
        place, before = self.folder / self.name_of(file), self.files.get(file.path)
        try:
            if place.exists():
                shutil.rmtree(place)
            self.unfinished(file).rename(place)
        except OSError as error:
            raise StoreError(f"{place}: cannot be written ({error.strerror})") from error
        self._put(replace(file, memory=place.name))
        used = {f.memory for f in self.files.values()}
        # What failed had none: the folder joined with an empty name would be the archive itself.
        if before and before.memory and before.memory not in used:
            shutil.rmtree(self.folder / before.memory, ignore_errors=True)

    def fail(self, file: File, reason: str, state: FileState = "failed") -> None:
        """Note why nothing was made of a file; an earlier memory of it stays."""
        shutil.rmtree(self.unfinished(file), ignore_errors=True)
        before = self.files.get(file.path)
        memory = before.memory if before else ""
        self._put(replace(file, state=state, reason=reason, memory=memory))

    def close(self) -> None:
        """Give back the right to write."""
        self._lock.release()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _read(self) -> None:
        path = self.folder / LIST
        with suppress(FileNotFoundError):
            *whole, rest = path.read_bytes().split(b"\n")  # the rest was torn by a kill
            try:
                rows = [_file(line) for line in whole]
            except (ValueError, TypeError, AttributeError) as error:
                raise StoreError(
                    f"{path} is damaged; remove it, and all files are read anew"
                ) from error
            for row in rows:
                if (
                    not isinstance(row.memory, str)
                    or Path(row.memory).name != row.memory
                    or row.memory.startswith(".")
                ):
                    raise StoreError(f"{path}: {row.memory!r} is no name of a memory")
            self.files = {row.path: row for row in rows}
            if rest or len(rows) > len(self.files):
                write_file(path, b"".join(map(_line, self.files.values())))

    def _put(self, file: File) -> None:
        self.files[file.path] = file
        path = self.folder / LIST
        try:
            with path.open("ab") as rows:
                rows.write(_line(file))
                rows.flush()
                os.fsync(rows.fileno())
        except OSError as error:
            raise StoreError(f"{path} cannot be written: {error.strerror}; free space?") from error


def _file(line: bytes) -> File:
    row = json.loads(line)
    return File(**row | {"stamp": tuple(row.get("stamp", ()))})


def _line(file: File) -> bytes:
    return json.dumps(asdict(file)).encode() + b"\n"
