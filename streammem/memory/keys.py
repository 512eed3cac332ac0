"""PictureKey and TextKey stood here; the file was overwritten by accident and must be restored."""

raise ImportError(
    "streammem/memory/keys.py (PictureKey, TextKey) was overwritten by accident at 03:38 by the "
    "author of memory/cache.py; no copy was found on disk: its author must write it again"
)
