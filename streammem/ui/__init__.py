"""The page in the browser: a video beside what is said of it, and questions with their evidence."""

from streammem.ui.page import add_page

__all__ = ["add_page"]
