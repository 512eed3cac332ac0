"""The errors that a caller can expect: each is ours and also the builtin one would guess.

A message names what failed, where, and what to try; the command line prints it as one line.
"""

from pathlib import Path

CLONE = Path(__file__).parents[1]


def install_command(extra: str) -> str:
    """Return the command that installs an extra: of a clone, where this is one, else from PyPI."""
    if (CLONE / "pyproject.toml").is_file():
        return f"pip install -e '.[{extra}]' (in {CLONE})"
    return f"pip install 'streammem[{extra}]'"


class StreammemError(Exception):
    """Any failure that streammem foresees."""


class ConfigError(StreammemError, ValueError):
    """An option, preset or configuration file that cannot be meant (exit code 2)."""


class SourceError(StreammemError, OSError):
    """A video source that cannot be opened or read."""


class TruncatedError(SourceError):
    """A source that ended early or broke off; what was read before it is good."""


class BackboneError(StreammemError, RuntimeError):
    """A backbone whose weights or package are missing, or do not fit."""


class ServedModelError(StreammemError, OSError):
    """A model server that cannot be reached, refuses, or gave what is no answer."""


class CheckpointError(StreammemError, ValueError):
    """A checkpoint that is corrupt, incomplete, or of another layout."""


class StoreError(StreammemError, OSError):
    """A memory that cannot be opened, read or written."""


class DatasetError(StreammemError, ValueError):
    """A data folder for training or evaluation that is missing or malformed."""
