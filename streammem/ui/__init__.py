"""The page in the browser: a door made with Gradio, and the watch page that it shows."""

from streammem.ui.watch import add_watch

__all__ = ["add_watch"]
