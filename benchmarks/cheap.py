"""streammem with the tests' model in its workers: what is left is the fleet's own cost.

    subprocess.run(command("index", "films", "--memory", "archive", cheap=True))

Workers find the openers by this module's name, so it is imported and not run.
"""

import sys
from typing import Any

from streammem.commands.archiving import ModelOpener
from streammem.commands.cameras import CamerasOpener


def command(*words: object, cheap: bool) -> list[str]:
    """Return a command line of streammem; a cheap one has the tests' model in its workers."""
    own = ["-m", "streammem"]
    if cheap:
        own = ["-c", "import sys; from benchmarks.cheap import main; sys.exit(main())"]
    return [sys.executable, *own, *map(str, words)]


def main() -> int:
    """Run a command line."""
    from streammem import cli
    from streammem.commands import archiving, cameras

    archiving.ModelOpener, cameras.CamerasOpener = CheapOpener, CheapCamerasOpener  # type: ignore[misc]
    return cli.main(sys.argv[1:])


class CheapOpener(ModelOpener):
    """Opens the tests' model in a worker."""

    def __call__(self) -> Any:
        _use_cheap_model()
        return super().__call__()


class CheapCamerasOpener(CamerasOpener):
    """Likewise, for cameras."""

    def __call__(self) -> Any:
        _use_cheap_model()
        return super().__call__()


def _use_cheap_model() -> None:
    from streammem.models import checkpoint
    from tests.tiny import tiny_model

    checkpoint.load_checkpoint = lambda name="", *, device="cpu": tiny_model()
