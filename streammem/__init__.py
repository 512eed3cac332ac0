"""streammem watches video for hours and can talk about it.

Importing it is cheap: torch and the rest load when something is used.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from streammem.engine.session import Session
    from streammem.engine.session_config import SessionConfig
    from streammem.engine.watch import WatchOptions, watch
    from streammem.models.checkpoint import load
    from streammem.video import open_source

__version__ = "0.1.0"
__all__ = ["Session", "SessionConfig", "WatchOptions", "load", "open_source", "watch"]

_HOMES = {
    "load": "streammem.models.checkpoint",
    "watch": "streammem.engine.watch",
    "WatchOptions": "streammem.engine.watch",
    "Session": "streammem.engine.session",
    "SessionConfig": "streammem.engine.session_config",
    "open_source": "streammem.video",
}


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
