"""The folder of a durable memory: its header, its one writer, its keyframe files.

What is in the database is `database.py`'s and `store.py`'s business.
"""

import json
import os
import re
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from hashlib import blake2b
from pathlib import Path

from streammem.errors import StoreError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

FORMAT = 5
WriteStamp = tuple[tuple[int, int, int], ...]
OLDEST_READ = 1  # formats from here on are read as they are; older ones need their writer first
_KEYFRAME = re.compile(r"\d{9,}-[0-9a-f]{16}\.jpg", re.ASCII)
HEADER, DATABASE, KEYFRAMES, LOCK = "memory.json", "memory.sqlite", "keyframes", "writer.lock"


@dataclass(frozen=True, slots=True)
class Header:
    """What `memory.json` says.

    Attributes:
        format: version of the layout, from 1.
        fingerprint: of the model whose keys and tokens these are.
        key_dim: D_key.
        token_shape: (M, D) of a token block.
        created: ISO 8601 with offset.
    """

    format: int
    fingerprint: str
    key_dim: int
    token_shape: tuple[int, int]
    created: str


def is_memory(path: str | Path) -> bool:
    """Tell whether a path is a memory: a folder that holds `memory.json`, and may be entered."""
    try:
        return (Path(path) / HEADER).is_file()
    except PermissionError:  # what opens the path says which one it was
        return False


def holds_memories(path: str | Path) -> bool:
    """Tell whether a path is a folder of memories."""
    try:
        return any(is_memory(each) for each in Path(path).iterdir())
    except OSError:  # no folder, or not to be listed
        return False


def last_written(path: Path) -> WriteStamp:
    """Return what changes with each write to a memory: inode, size and time of its files."""
    files: list[tuple[int, int, int]] = []
    for name in (DATABASE, f"{DATABASE}-wal"):
        with suppress(OSError):
            found = (path / name).stat()
            if found.st_size:  # a reader may make an empty WAL
                files.append((found.st_ino, found.st_size, found.st_mtime_ns))
    return tuple(files)


def remove_empty(path: Path) -> None:
    """Remove the files of a closed memory that holds nothing; what cannot be removed stays."""
    with suppress(OSError):
        (path / KEYFRAMES).rmdir()
    for name in (HEADER, DATABASE, f"{DATABASE}-wal", f"{DATABASE}-shm", LOCK):
        with suppress(OSError):
            (path / name).unlink(missing_ok=True)


def remove(path: Path) -> None:
    """Remove a memory for good; files that are none of its own stay.

    Raises:
        StoreError: it is no memory, or is being written.
    """
    if not is_memory(path):
        raise StoreError(f"{path} is not a memory")
    with WriterLock(path):
        (path / HEADER).unlink()  # first: what a crash leaves is no memory any more
        for file in [*(path / KEYFRAMES).glob("*.jpg"), *(path / KEYFRAMES).glob("*.partial")]:
            file.unlink(missing_ok=True)
        remove_empty(path)
    with suppress(OSError):
        path.rmdir()


def rename(path: Path, name: str) -> None:
    """Give a memory's folder another name beside it.

    Raises:
        StoreError: it is being written, or there is something of that name.
    """
    with WriterLock(path):
        if os.path.lexists(path.with_name(name)):
            raise StoreError(f"there is a {name} already; choose another name")
        try:
            path.rename(path.with_name(name))
        except OSError as error:
            raise StoreError(f"{path} cannot be renamed: {error.strerror}") from error


def read_header(path: Path) -> Header:
    """Read and check a memory's header.

    Raises:
        StoreError: no memory, not readable, damaged, or of a newer format.
    """
    if path.exists() and not path.is_dir():
        raise StoreError(f"{path} is a file, not a memory; give a folder")
    if not is_memory(path):
        raise StoreError(f"{path} is not a memory: it has no {HEADER}; check the path")
    try:
        fields = json.loads((path / HEADER).read_bytes())
        newer = int(fields["format"]) > FORMAT
        header = None if newer else Header(**{**fields, "token_shape": (*fields["token_shape"],)})
    except OSError as error:
        raise StoreError(f"{path / HEADER} cannot be read: {error.strerror}") from error
    except (ValueError, TypeError, KeyError) as error:
        raise StoreError(f"{path / HEADER} is damaged; restore it from a backup") from error
    if header is None:
        raise StoreError(
            f"{path} has format {fields['format']}, newer than {FORMAT}; update streammem"
        )
    return header


def write_header(path: Path, header: Header) -> None:
    """Write a memory's header so that a crash leaves the old one or the new one."""
    write_file(path / HEADER, json.dumps(asdict(header), indent=1).encode() + b"\n")


def now_text() -> str:
    """Return the wall clock as ISO 8601 with offset, to the second."""
    return datetime.now(UTC).astimezone().isoformat(timespec="seconds")


def writable(path: Path) -> bool:
    """Tell whether this process may write in a folder."""
    return os.access(path, os.W_OK, effective_ids=os.access in os.supports_effective_ids)


class WriterLock:
    """The right to write to a memory, held by one process at a time and gone with it."""

    def __init__(self, path: Path) -> None:
        """Take the lock.

        Raises:
            StoreError: another holds it (the message says who), or the folder is not writable.
        """
        if fcntl is None:
            raise StoreError(
                f"{path}: writing a memory needs POSIX file locks; open it for reading"
            )
        try:
            self._file = os.open(path / LOCK, os.O_RDWR | os.O_CREAT, 0o644)
        except OSError as error:
            raise StoreError(
                f"{path} cannot be written ({error.strerror}); open it for reading"
            ) from error
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            holder = os.pread(self._file, 500, 0).decode(errors="replace").strip() or "unknown"
            os.close(self._file)
            raise StoreError(
                f"{path} is being written by {holder}; stop that, or open it for reading"
            ) from error
        holder = f"process {os.getpid()} on {socket.gethostname()} since {now_text()}"
        os.ftruncate(self._file, 0)
        os.pwrite(self._file, holder.encode(), 0)

    def release(self) -> None:
        """Give the lock back."""
        os.close(self._file)

    def __enter__(self) -> None: ...

    def __exit__(self, *_: object) -> None:
        self.release()


def keyframe_name(segment: int, jpeg: bytes) -> str:
    """Return the file name of a keyframe; it holds the picture's digest."""
    return f"{segment:09d}-{blake2b(jpeg, digest_size=8).hexdigest()}.jpg"


def is_keyframe_name(name: str) -> bool:
    """Tell whether a file name is one that `keyframe_name` gives."""
    return bool(_KEYFRAME.fullmatch(name))


def intact(name: str, jpeg: bytes) -> bool:
    """Tell whether a keyframe's bytes are those that its name was made of."""
    return name == keyframe_name(int(name.split("-")[0]), jpeg)


@contextmanager
def kept_keyframe(path: Path, segment: int, jpeg: bytes | None) -> Iterator[str | None]:
    """Put a keyframe on disk for good; take it back if the block that names it fails.

    Yields:
        Its file name; None without a picture.

    Raises:
        StoreError: the disk is full or not writable.
    """
    if jpeg is None:
        yield None
        return
    name = keyframe_name(segment, jpeg)
    target = path / KEYFRAMES / name
    existed = target.exists()
    if not existed:
        write_file(target, jpeg)
    try:
        yield name
    except BaseException:
        if not existed:
            target.unlink(missing_ok=True)
        raise


def write_file(target: Path, content: bytes) -> None:
    """Write a file so that, once this returns, it survives a power cut; never a part of it.

    Raises:
        StoreError: the disk is full or not writable.
    """
    partial = target.with_suffix(".partial")
    try:
        with partial.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(target)
        sync_folder(target.parent)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise StoreError(f"{target} cannot be written: {error.strerror}; free space?") from error


def sync_folder(path: Path) -> None:
    """Make the creation, renaming and removal of a folder's files survive a power cut."""
    folder = os.open(path, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def remove_keyframes(path: Path, names: set[str]) -> None:
    """Remove keyframe files for good; missing ones are no error."""
    for name in names:
        (path / KEYFRAMES / name).unlink(missing_ok=True)
    if names:
        sync_folder(path / KEYFRAMES)


def keyframe_names(path: Path) -> set[str]:
    """Return the names of all files among the keyframes, half-written ones included."""
    folder = path / KEYFRAMES
    return {file.name for file in folder.iterdir()} if folder.is_dir() else set()
