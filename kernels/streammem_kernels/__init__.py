"""Kernels for what no library computes; each has a torch reference, and `ops` chooses.

    from streammem_kernels import ops
    rows, scores = ops.find_topk(questions, keys, ranges, k=8, scales=scales)

Importing this package or `ops` imports neither Triton nor streammem.
"""
