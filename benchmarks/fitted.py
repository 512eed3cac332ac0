"""Keeps what a benchmark has fitted in the checkpoint that it was fitted to."""

import json
from pathlib import Path
from typing import Any


def keep(folder: Path, name: str, values: dict[str, Any]) -> None:
    """Write ``values`` under ``name`` into a checkpoint folder's config.json; the rest stays."""
    path = folder / "config.json"
    config = json.loads(path.read_text()) | {name: values}
    path.write_text(json.dumps(config, indent=1) + "\n")
