"""The web page: a video beside its captions, and questions with their evidence."""

from streammem.ui.page import add_page

__all__ = ["add_page"]
