"""How many threads numeric libraries may use: decided here, once, at the top of a program.

Two busy pools on two cores stall each other at their barriers (ten times slower, measured), so
each concurrent part gets its share of the cores.
"""

import os


def cores() -> int:
    """Return the cores that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def limit_threads(busy: int) -> int:
    """Give each of ``busy`` parts that compute at the same time an equal share of the cores.

    To be called before a model is loaded: the frame encoder keeps the number it finds then.

    Args:
        busy: 2 while perception and speech run side by side; 1 for work that runs alone.

    Returns:
        Threads a part.
    """
    import faiss
    import torch

    share = max(1, cores() // busy)
    torch.set_num_threads(share)
    faiss.omp_set_num_threads(1)  # one query is too small to share
    return share
