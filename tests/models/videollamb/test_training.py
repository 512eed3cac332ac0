import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from streammem.errors import ConfigError
from streammem.models.videollamb.bridge import ParentBridgeConfig, fresh
from streammem.models.videollamb.training import Example, ParentRecipe, loss, pace, train
from tests.models.videollamb.published import MLP, D, L, M

SIZES = ParentBridgeConfig(D, L, M, mlp=MLP, dropout=0.0, attention_dropout=0.0)


@pytest.fixture
def language():
    torch.manual_seed(1)
    config = LlamaConfig(
        vocab_size=50,
        hidden_size=L,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=4,
    )
    return LlamaForCausalLM(config).eval()


@pytest.fixture
def bridge():
    torch.manual_seed(0)
    return fresh(SIZES).eval()


def example(seed=0):
    generator = torch.Generator().manual_seed(seed)
    segments = [torch.randn(n, D, generator=generator) for n in (9, 18, 9)]
    return Example(segments, before=[1, 5], after=[6, 7], answer=[10 + seed, 11, 2])


def by_hand(bridge, language, one, shown):
    """The mean of -log p of the answer's tokens, one token at a time."""
    total = 0.0
    for i, token in enumerate(one.answer):
        embed = language.get_input_embeddings()
        ids = torch.tensor([*one.after, *one.answer[:i]])
        x = torch.cat([embed(torch.tensor(one.before)), shown, embed(ids)])
        total -= language(inputs_embeds=x[None]).logits[0, -1].log_softmax(-1)[token]
    return total / len(one.answer)


@torch.no_grad()
def test_the_loss_is_of_the_answer_alone_after_the_last_segment_or_every_one(bridge, language):
    one, memory, cache, shown = example(), bridge.initial_memory(), [], []
    for segment in one.segments:
        read = bridge.read(segment[None], memory)
        cache.append(read.memory)
        memory = bridge.recall(read.memory, torch.cat(cache, 1))
        shown.append(bridge.to_language(read.hidden[0]))
    each = [by_hand(bridge, language, one, tokens) for tokens in shown]
    last = loss(bridge, language, one, ParentRecipe())
    every = loss(bridge, language, one, ParentRecipe(loss_on="every"))
    torch.testing.assert_close(last, each[-1], atol=1e-5, rtol=0)
    torch.testing.assert_close(every, sum(each) / 3, atol=1e-5, rtol=0)


@pytest.mark.parametrize("on", ["last", "every"])
@pytest.mark.parametrize("cache", ["memory", "hidden"])
def test_a_few_steps_lower_the_loss(bridge, language, on, cache):
    recipe = ParentRecipe(loss_on=on, cache=cache, steps=12, rate=3e-3)
    losses = train(bridge, language, [example(0), example(1)], recipe)
    assert len(losses) == 12 and max(losses[-2:]) < 0.7 * min(losses[:2])
    assert not bridge.training and not language.training


def test_the_loss_reaches_the_first_segment_and_the_first_memory(bridge, language):
    one = example()
    one.segments[0].requires_grad_(True)
    loss(bridge, language, one, ParentRecipe()).backward()
    assert one.segments[0].grad.abs().max() > 0
    assert bridge.projector.read_memory_emb.grad.abs().max() > 0
    # A softmax does not see what all keys share, so the bias of the keys learns nothing.
    learning = [p for name, p in bridge.named_parameters() if not name.endswith("k_proj.bias")]
    assert all(p.grad is not None and p.grad.abs().max() > 1e-6 for p in learning)


def test_a_detached_cache_changes_the_gradient_and_not_the_loss(bridge, language):
    values, gradients = [], []
    for detach in (False, True):
        bridge.zero_grad()
        value = loss(bridge, language, example(), ParentRecipe(detach_cache=detach))
        value.backward()
        values.append(value.item())
        gradients.append(bridge.projector.read_memory_emb.grad.clone())
    assert values[0] == values[1]
    assert not torch.allclose(gradients[0], gradients[1])


def test_gradients_end_at_the_window_and_the_loss_does_not_change(bridge, language):
    reached, values = [], []
    for window in (0, 3, 2, 1):
        one = example()
        for segment in one.segments:
            segment.requires_grad_(True)
        value = loss(bridge, language, one, ParentRecipe(window=window))
        value.backward()
        values.append(value.item())
        parts = [bridge.projector.read_memory_emb, *one.segments]
        reached.append([part.grad is not None and bool(part.grad.any()) for part in parts])
        bridge.zero_grad()
    assert len(set(values)) == 1
    whole, last = [True] * 4, [False, False, False, True]
    assert reached == [whole, whole, last, last]


def test_the_pace_starts_linearly_and_falls_as_a_cosine():
    recipe = ParentRecipe(steps=100, warmup=0.1)
    paces = [pace(step, recipe) for step in range(101)]
    assert paces[0] == 0 and paces[5] == 0.5 and paces[10] == 1
    assert abs(paces[55] - 0.5) < 1e-9 and paces[100] < 1e-9


@pytest.mark.parametrize(
    "wrong", [{"steps": 0}, {"loss_on": "all"}, {"cache": ""}, {"rate": 0.0}, {"window": -1}]
)
def test_a_recipe_that_cannot_be_meant_is_refused(wrong):
    with pytest.raises(ConfigError):
        ParentRecipe(**wrong)
