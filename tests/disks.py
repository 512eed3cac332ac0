"""Disks that are full: a real one where tests may mount it, and one that only looks so."""

import errno
import os
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from benchmarks import disk


@contextmanager
def small_disk(place, num_bytes):
    """Mount a file system of so many bytes at a folder; skips where that is not allowed."""
    with ExitStack() as stack:
        try:
            stack.enter_context(disk.small_disk(place, num_bytes))
        except PermissionError as error:
            pytest.skip(f"a small disk cannot be mounted here: {error}")
        yield


@contextmanager
def no_more_files(place, num_bytes):
    """Refuse files below a folder once those that were put there hold so many bytes."""
    replace, written = Path.replace, 0

    def refused(path, target):
        nonlocal written
        if place in Path(target).parents:
            written += path.stat().st_size
            if written > num_bytes:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return replace(path, target)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Path, "replace", refused)
        yield
