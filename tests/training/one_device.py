"""Finds tensors that are not where the learning is, on a machine that has only a CPU.

Torch's ``meta`` device stands for a GPU: shapes without values. Some of its operators take CPU
tensors beside meta ones, which CUDA would refuse; the mode here refuses them too.
"""

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

aten = torch.ops.aten
# Copies between devices, and indexing by CPU indices, are allowed on CUDA as well.
ALLOWED = {aten.copy_, aten._to_copy, aten.index, aten.index_put, aten.index_put_}
META = {"match": "meta tensor"}  # a value was asked for: all before it was in place


class OneDevice(TorchDispatchMode):
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        tensors = [t for t in tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor) and t.ndim]
        if len({t.device.type for t in tensors}) > 1 and func.overloadpacket not in ALLOWED:
            raise AssertionError(f"{func} mixes {[(t.device.type, *t.shape) for t in tensors]}")
        return func(*args, **kwargs or {})
