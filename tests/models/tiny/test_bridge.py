import math

import pytest
import torch

from streammem.models.tiny.bridge import Attention, BridgeConfig, LookLayer, MemoryBridge

CONFIG = BridgeConfig(
    patch_dim=10,
    patches=6,
    language_dim=20,
    language_norm=3.0,
    dim=16,
    memory_tokens=4,
    layers=2,
    heads=4,
)


@pytest.fixture
def bridge():
    torch.manual_seed(0)
    bridge = MemoryBridge(CONFIG)
    # Training moves what begins at zero; a test of formulas must see it.
    torch.nn.init.normal_(bridge.time_in.weight)
    torch.nn.init.uniform_(bridge.patch_std, 0.5, 2.0)
    torch.nn.init.normal_(bridge.patch_mean)
    for norm in bridge.modules():
        if isinstance(norm, torch.nn.LayerNorm | torch.nn.RMSNorm):
            torch.nn.init.uniform_(norm.weight, 0.5, 1.5)
    return bridge.eval().requires_grad_(False)


def segment(batch=2, frames=3, seed=1):
    generator = torch.Generator().manual_seed(seed)
    patches = torch.randn(batch, frames, 6, 10, generator=generator)
    return patches, torch.linspace(0, 1, frames).expand(batch, -1)


# -- a float64 reference: plain products, one head at a time --


def linear(layer, x):
    bias = 0 if layer.bias is None else layer.bias.double()
    return x @ layer.weight.double().T + bias


def layer_norm(layer, x):
    x = x - x.mean(-1, keepdim=True)
    x = x / (x.pow(2).mean(-1, keepdim=True) + layer.eps).sqrt()
    return x * layer.weight.double() + layer.bias.double()


def gelu(x):
    return x * 0.5 * (1 + torch.erf(x / math.sqrt(2)))


def attention(layer, x, context, readable=None):
    dim, heads = x.shape[-1], layer.heads
    size = dim // heads
    q = linear(layer.query, x)
    both = linear(layer.key_value, context)
    k, v = both[..., :dim], both[..., dim:]
    out = torch.zeros_like(q)
    for head in range(heads):
        own = slice(head * size, (head + 1) * size)
        scores = q[..., own] @ k[..., own].transpose(-1, -2) / math.sqrt(size)
        if readable is not None:
            scores = scores.masked_fill(~readable[:, None, :], -math.inf)
        weights = scores.exp() / scores.exp().sum(-1, keepdim=True)
        out[..., own] = weights @ v[..., own]
    return linear(layer.out, out)


def perceptron(layers, x):
    return linear(layers[3], gelu(linear(layers[1], layer_norm(layers[0], x))))


def look_layer(layer, x, context, readable=None):
    normed = layer_norm(layer.norm_self, x)
    x = x + attention(layer.self_attention, normed, normed)
    x = x + attention(layer.cross_attention, layer_norm(layer.norm_cross, x), context, readable)
    return x + perceptron(layer.mlp, x)


# float32 against float64 over a few layers of width 16
TOLERANCE = {"atol": 2e-5, "rtol": 0}


@pytest.mark.parametrize("masked", [False, True])
def test_a_look_layer_equals_its_formula(bridge, masked):
    layer = bridge.layers[0]
    assert isinstance(layer, LookLayer)
    generator = torch.Generator().manual_seed(0)
    x, context = (torch.randn(2, n, 16, generator=generator) for n in (4, 9))
    readable = torch.rand(2, 9, generator=generator) < 0.6 if masked else None
    expected = look_layer(layer, x.double(), context.double(), readable)
    assert torch.allclose(layer(x, context, readable).double(), expected, **TOLERANCE)


# (width, heads, queries, context rows): few queries over 1 to 8 frames of 49 patches, as the bridge
# and a picture's key read them, and odd sizes
SHAPES = [
    (384, 6, 16, 49), (384, 6, 16, 147), (384, 6, 16, 392),
    (256, 4, 4, 49), (30, 3, 1, 7), (35, 5, 3, 11), (18, 1, 5, 13),
]  # fmt: skip


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize(("dim", "heads", "queries", "rows"), SHAPES)
def test_absorbed_attention_equals_the_formula_and_plain(dim, heads, queries, rows, masked):
    torch.manual_seed(0)
    layer = Attention(dim, heads, 0.0).requires_grad_(False)
    torch.nn.init.normal_(layer.key_value.bias)  # else nothing would show that it is left out
    x, context = torch.randn(2, queries, dim), torch.randn(2, rows, dim)
    readable = torch.rand(2, rows) < 0.6 if masked else None
    expected = attention(layer, x.double(), context.double(), readable)
    projected = []
    layer.key_value.register_forward_hook(lambda *_: projected.append(1))
    absorbed = layer.eval()(x, context, readable)
    assert not projected
    plain = layer.train()(x, context, readable)
    assert projected
    # float32 against float64 over five products of at most 392 terms; values reach 2.4, and both
    # forms are within 1.9e-6 of the formula
    assert (absorbed.double() - expected).abs().max() < 5e-6
    assert (plain.double() - expected).abs().max() < 5e-6


def test_queries_that_attend_to_themselves_stay_plain():
    layer, x = Attention(384, 6, 0.1).eval(), torch.zeros(1, 16, 384)
    projected = []
    layer.key_value.register_forward_hook(lambda *_: projected.append(1))
    layer(x, x)
    assert projected


@pytest.mark.parametrize("frames", range(1, 9))
def test_looking_in_training_and_outside_is_the_same_function(frames):
    torch.manual_seed(0)
    config = BridgeConfig(
        patch_dim=10, patches=49, language_dim=20, dim=96, heads=6, layers=2, dropout=0.0,
        memory_tokens=5,
    )  # fmt: skip
    bridge = MemoryBridge(config).requires_grad_(False)
    patches, times = torch.randn(2, frames, 49, 10), torch.rand(2, frames)
    plain = bridge.train().encode(patches, times)
    absorbed = bridge.eval().encode(patches, times)
    assert not torch.equal(absorbed, plain)  # the other form ran
    assert torch.allclose(absorbed, plain, **TOLERANCE)


def test_looking_equals_its_formula(bridge):
    patches, times = segment()
    x = (patches.double() - bridge.patch_mean.double()) / bridge.patch_std.double()
    x = linear(bridge.patch_in, x) + bridge.position.double()
    clock = torch.stack([times, 1 - times], -1).double()
    x = x + linear(bridge.time_in, clock)[:, :, None]
    context = layer_norm(bridge.norm_patches, x.reshape(2, 3 * 6, 16))
    tokens = bridge.queries.double().expand(2, -1, -1)
    for layer in bridge.layers:
        tokens = look_layer(layer, tokens, context)
    expected = layer_norm(bridge.norm_out, tokens)
    assert torch.allclose(bridge.encode(patches, times).double(), expected, **TOLERANCE)


def test_tokens_enter_the_language_model_at_the_size_of_its_own(bridge):
    bridge.scale.fill_(1.5)
    tokens = torch.randn(2, 4, 16, generator=torch.Generator().manual_seed(0))
    projected = linear(bridge.project, tokens.double())
    expected = projected / projected.pow(2).sum(-1, keepdim=True).sqrt() * 3.0 * 1.5
    visual = bridge.to_language(tokens)
    assert torch.allclose(visual.double(), expected, **TOLERANCE)
    assert torch.allclose(visual.norm(dim=-1), torch.tensor(4.5))
    assert bridge.to_language(tokens[:, :0]).shape == (2, 0, 20)


# -- laws --


def test_padding_frames_change_nothing(bridge):
    patches, times = segment(batch=1, frames=3)
    padded = torch.cat([patches, torch.full((1, 2, 6, 10), 1e4)], 1)
    places = torch.cat([times, torch.ones(1, 2)], 1)
    mask = torch.tensor([[True, True, True, False, False]])
    assert torch.allclose(
        bridge.encode(padded, places, mask), bridge.encode(patches, times), atol=1e-6
    )
    assert not torch.allclose(
        bridge.encode(padded, places), bridge.encode(patches, times), atol=1e-2
    )


def test_the_rows_of_a_batch_do_not_touch(bridge):
    patches, times = segment(batch=3)
    together = bridge.encode(patches, times)
    for i in range(3):
        alone = bridge.encode(patches[i : i + 1], times[:1])[0]
        assert torch.allclose(together[i], alone, atol=1e-6)


def test_places_in_time_and_in_the_picture_are_seen(bridge):
    patches, times = segment(batch=1)
    tokens = bridge.encode(patches, times)
    assert not torch.allclose(bridge.encode(patches.flip(1), times), tokens, atol=1e-3)
    assert not torch.allclose(bridge.encode(patches.flip(2), times), tokens, atol=1e-3)
