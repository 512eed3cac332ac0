"""streammem watches video for hours and can talk about it.

Importing it is cheap: torch and the rest load when something is used.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from streammem.engine.session import Session
    from streammem.engine.session_config import SessionConfig
    from streammem.engine.watch import watch
    from streammem.engine.watch_options import WatchCallbacks, WatchOptions
    from streammem.models.registry import load
    from streammem.video import SourceOptions, open_source

__version__ = "0.1.0"
__all__ = [
    "Session",
    "SessionConfig",
    "SourceOptions",
    "WatchCallbacks",
    "WatchOptions",
    "load",
    "open_source",
    "watch",
]

_HOMES = {
    "load": "streammem.models.registry",
    "watch": "streammem.engine.watch",
    "WatchCallbacks": "streammem.engine.watch_options",
    "WatchOptions": "streammem.engine.watch_options",
    "Session": "streammem.engine.session",
    "SessionConfig": "streammem.engine.session_config",
    "SourceOptions": "streammem.video",
    "open_source": "streammem.video",
}


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    found = globals()[name] = getattr(import_module(_HOMES[name]), name)  # looked up once
    return found
