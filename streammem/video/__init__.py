"""Video sources behind one protocol: files, URLs, pictures, folders, pushed frames."""

from streammem.video.source import Reader, Spec, VideoSource, open_source

__all__ = ["Reader", "Spec", "VideoSource", "open_source"]
