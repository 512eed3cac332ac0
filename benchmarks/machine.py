"""What a benchmark ran on: the part of its last line that makes two runs comparable."""

import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from streammem.commands.environment import describe


def machine(*packages: str) -> dict[str, str]:
    """Describe versions, processor, cores and commit; ``packages`` beside streammem's own."""
    facts = {name: value for name, value in describe().items() if not name.isupper()}
    for package in packages:
        try:
            facts[package] = version(package)
        except PackageNotFoundError:
            facts[package] = "not installed"
    return facts | {"commit": _commit()}


def _commit() -> str:
    root = Path(__file__).parent.parent
    command = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=12"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    return result.stdout.strip() or "unknown"
