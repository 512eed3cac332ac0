"""Which blocks a kernel is launched with: the fastest of a space on a GPU, the first elsewhere."""

import triton


class Fixed:
    """A kernel with one choice of blocks; the interpreter has no time to compare by."""

    def __init__(self, kernel, blocks, num_warps):
        self.kernel, self.blocks, self.num_warps = kernel, blocks, num_warps

    def __getitem__(self, grid):
        def launch(*arguments, **constants):
            size = grid(self.blocks)
            return self.kernel[size](
                *arguments, **constants, **self.blocks, num_warps=self.num_warps
            )

        return launch


def tuned(kernel, space, key, changed=()):
    """Return a kernel that is launched with the fastest blocks of a space.

    They are compared at the first launch for each value of the arguments ``key``, once a process;
    no compile there is under a second.

    Args:
        kernel: compiled by ``triton.jit``.
        space: (blocks, warps, stages) of each choice, the default first.
        key: names of arguments on which the fastest choice depends.
        changed: names of tensors that a launch changes, which are restored between comparisons.
    """
    blocks, num_warps, _ = space[0]
    if triton.knobs.runtime.interpret:
        return Fixed(kernel, blocks, num_warps)
    configs = [
        triton.Config(blocks, num_warps=warps, num_stages=stages) for blocks, warps, stages in space
    ]
    return triton.autotune(configs, key=list(key), restore_value=list(changed))(kernel)
