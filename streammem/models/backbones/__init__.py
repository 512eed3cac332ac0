"""Adapters of vision encoders, language models and sentence encoders, and their weights."""

import sys
from contextlib import suppress
from functools import cache
from importlib.util import find_spec


def _without_triton() -> None:
    """Let torch find no Triton where no accelerator is, before transformers makes it look.

    transformers imports torch's compiler, which imports Triton wherever torch finds it: 130 MB of
    memory that nothing on a CPU uses. What imports Triton by itself, as our kernels do, still
    gets it, in any thread and at any time: Python's own imports stay as they are.
    """
    if "triton" in sys.modules or not find_spec("triton"):
        return
    import torch

    if torch.accelerator.is_available():
        return
    with suppress(ImportError):  # another torch may look in another place
        from torch.utils import _triton

        _triton.has_triton_package = cache(lambda: False)


_without_triton()
