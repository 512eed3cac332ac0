"""Adapters of vision encoders, language models and sentence encoders, and their weights."""

import sys
from contextlib import suppress
from importlib.util import find_spec


def _without_triton() -> None:
    """Let torch find no Triton where no accelerator is, before transformers makes it look.

    transformers imports torch's compiler, which imports Triton wherever it is installed: 130 MB of
    memory that nothing on a CPU uses. torch asks once in a process and keeps the answer; what
    imports Triton by itself, as our kernels do, still gets it.
    """
    if "triton" in sys.modules or not find_spec("triton"):
        return
    import torch

    if torch.accelerator.is_available():
        return
    sys.modules["triton"] = None  # type: ignore[assignment]
    try:
        with suppress(ImportError, AttributeError):  # another torch may ask in another way
            from torch.utils._triton import has_triton_package

            has_triton_package()
    finally:
        del sys.modules["triton"]


_without_triton()
