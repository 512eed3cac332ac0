"""What a benchmark ran on: the part of its last line that makes two runs comparable."""

from importlib.metadata import PackageNotFoundError, version

from streammem.commands.environment import describe
from streammem.evaluation.report import commit


def machine(*packages: str) -> dict[str, str]:
    """Describe versions, processor, cores and commit; ``packages`` beside streammem's own."""
    facts = {name: value for name, value in describe().items() if not name.isupper()}
    for package in packages:
        try:
            facts[package] = version(package)
        except PackageNotFoundError:
            facts[package] = "not installed"
    return facts | {"commit": commit()}
