"""Video sources behind one protocol: files, URLs, pictures, folders, pushed frames."""

from streammem.video.registry import Spec, kind_of, open_source, open_with
from streammem.video.source import Decoder, SourceOptions, VideoSource

__all__ = [
    "Decoder",
    "SourceOptions",
    "Spec",
    "VideoSource",
    "kind_of",
    "open_source",
    "open_with",
]
