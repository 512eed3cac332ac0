"""EfficientNet-Lite as published: its blocks, and a state dict of random weights."""

import torch

# (repeats, kernel, stride, expansion, channels), written out as the published models have them.
STAGES = {
    "lite0": (
        (1, 3, 1, 1, 16),
        (2, 3, 2, 6, 24),
        (2, 5, 2, 6, 40),
        (3, 3, 2, 6, 80),
        (3, 5, 1, 6, 112),
        (4, 5, 2, 6, 192),
        (1, 3, 1, 6, 320),
    ),
    "lite2": (
        (1, 3, 1, 1, 16),
        (3, 3, 2, 6, 24),
        (3, 5, 2, 6, 48),
        (4, 3, 2, 6, 88),
        (4, 5, 1, 6, 120),
        (5, 5, 2, 6, 208),
        (1, 3, 1, 6, 352),
    ),
}


def blocks_of(variant):
    """(in, out, kernel, stride, expansion, stage) of each block."""
    channels = 32
    for stage, (repeats, kernel, stride, expansion, out) in enumerate(STAGES[variant]):
        for repeat in range(repeats):
            yield channels, out, kernel, stride if repeat == 0 else 1, expansion, stage
            channels = out


def published_state(variant):
    """Random weights under the published names, scaled so that activations keep their size."""
    generator = torch.Generator().manual_seed(0)
    state = {}

    def conv(name, out, inside, kernel, norm):
        spread = 0.7 * (2 / (inside * kernel**2)) ** 0.5  # tame, as trained networks are
        state[f"{name}.weight"] = spread * torch.randn(
            out, inside, kernel, kernel, generator=generator
        )
        state[f"{norm}.weight"] = 0.5 + torch.rand(out, generator=generator)
        state[f"{norm}.bias"] = 0.3 * torch.randn(out, generator=generator)
        state[f"{norm}.running_mean"] = 0.3 * torch.randn(out, generator=generator)
        state[f"{norm}.running_var"] = 0.5 + torch.rand(out, generator=generator)
        state[f"{norm}.num_batches_tracked"] = torch.tensor(1)

    conv("_conv_stem", 32, 3, 3, "_bn0")
    for number, (inside, out, kernel, _, expansion, _) in enumerate(blocks_of(variant)):
        name, hidden = f"_blocks.{number}", inside * expansion
        if expansion > 1:
            conv(f"{name}._expand_conv", hidden, inside, 1, f"{name}._bn0")
        conv(f"{name}._depthwise_conv", hidden, 1, kernel, f"{name}._bn1")
        conv(f"{name}._project_conv", out, hidden, 1, f"{name}._bn2")
    conv("_conv_head", 1280, STAGES[variant][-1][-1], 1, "_bn1")
    state["_fc.weight"] = torch.zeros(1000, 1280)
    return state
