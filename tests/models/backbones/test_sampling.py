import pytest
import torch

from streammem.errors import ConfigError
from streammem.models.backbones.sampling import LIKELY, GenerationConfig, penalised, pick


def generators(*seeds):
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def test_a_row_draws_the_same_whoever_stands_beside_it():
    logits = torch.randn(5, 900, generator=torch.Generator().manual_seed(0))
    for top_p in (1.0, 0.5):
        config = GenerationConfig(temperature=1.3, top_p=top_p)
        tokens, log_probs = pick(logits, config, generators(*range(5)))
        for i in range(5):
            alone = pick(logits[i : i + 1], config, generators(i))
            assert (alone[0][0], alone[1][0]) == (tokens[i], log_probs[i])


def test_replies_that_share_a_row_draw_what_each_draws_from_a_row_of_its_own():
    logits = torch.randn(3, 900, generator=torch.Generator().manual_seed(0))
    rows, seeds = [2, 0, 2, 2, 1, 0, 2], [0, 1, 2, None, 4, None, 6]
    draws = [None if seed is None else generators(seed)[0] for seed in seeds]
    for options in ({}, {"top_p": 0.5}, {"top_k": 7}, {"top_k": 7, "top_p": 0.5}):
        config = GenerationConfig(temperature=1.3, **options)
        states = [draw and draw.get_state() for draw in draws]
        shared = pick(logits, config, draws, rows)
        for draw, state in zip(draws, states, strict=True):
            if draw:
                draw.set_state(state)
        own = pick(logits[rows], config, draws)
        assert torch.equal(shared[0], own[0]) and torch.equal(shared[1], own[1])
        assert len(set(shared[0].tolist())) > 3


def test_draws_follow_the_softmax_at_the_temperature():
    logits = torch.tensor([[2.0, 1.0, 0.0, -3.0]]).expand(4000, -1)
    tokens, log_probs = pick(logits, GenerationConfig(temperature=2.0), generators(*range(4000)))
    expected = (logits[0] / 2).softmax(-1)
    drawn = tokens.bincount(minlength=4) / 4000
    assert (drawn - expected).abs().max() < 0.032  # four standard deviations at one half
    assert torch.allclose(log_probs, expected.log()[tokens], atol=1e-6)


def test_a_nucleus_wider_than_the_likely_tokens_is_drawn_from_whole():
    """A flat distribution over 1,000 tokens: nine tenths of them are within 0.9."""
    logits = torch.linspace(0.01, 0, 1000).expand(3000, -1)
    tokens, _ = pick(logits, GenerationConfig(temperature=1.0, top_p=0.9), generators(*range(3000)))
    assert LIKELY < 850 < int(tokens.max()) < 905
    assert abs(float(tokens.float().mean()) - 450) < 4 * 260 / 3000**0.5


def test_greedy_takes_the_likeliest_token_and_draws_nothing():
    logits = torch.randn(3, 50, generator=torch.Generator().manual_seed(1))
    generator = torch.Generator().manual_seed(0)
    state = generator.get_state()
    tokens, log_probs = pick(logits, GenerationConfig(), [generator] * 3)
    assert torch.equal(tokens, logits.argmax(-1))
    assert torch.allclose(log_probs, logits.log_softmax(-1).amax(-1))
    assert torch.equal(generator.get_state(), state)


def test_nothing_is_sorted_where_no_nucleus_is_cut_out(monkeypatch):
    monkeypatch.setattr(torch.Tensor, "sort", None)
    monkeypatch.setattr(torch.Tensor, "topk", None)
    logits = torch.full((1, 1000), -torch.inf)
    logits[0, 700] = 0.0
    tokens, _ = pick(logits, GenerationConfig(temperature=1.0), generators(0))
    assert int(tokens) == 700


@pytest.mark.parametrize("draw", [0.0, 1 - 2**-53])
@pytest.mark.parametrize("top_p", [1.0, 0.999999])
def test_a_draw_at_either_end_takes_a_token_that_can_be_said(monkeypatch, draw, top_p):
    """Whatever the probabilities sum up to: of 500 rows some sums lie above 1 and some below."""
    monkeypatch.setattr(torch, "rand", lambda n, **_: torch.full((n,), draw, dtype=torch.float64))
    logits = torch.randn(500, 1000, generator=torch.Generator().manual_seed(2))
    logits[:, :100] = logits[:, 900:] = -torch.inf
    config = GenerationConfig(temperature=1.0, top_p=top_p)
    tokens, log_probs = pick(logits, config, generators(*range(500)))
    assert log_probs.isfinite().all()
    assert ((tokens >= 100) & (tokens < 900)).all()


@pytest.mark.parametrize("temperature", [1e-38, 5e-324])
@pytest.mark.parametrize("top_p", [1.0, 0.9])
def test_the_coldest_temperature_takes_the_likeliest_token(temperature, top_p):
    logits = 8 * torch.randn(3, 900, generator=torch.Generator().manual_seed(3))
    config = GenerationConfig(temperature=temperature, top_p=top_p)
    tokens, log_probs = pick(logits, config, generators(0, 1, 2))
    assert torch.equal(tokens, logits.argmax(-1))
    assert log_probs.tolist() == [0, 0, 0]


def test_top_k_draws_of_so_many_likeliest_tokens_by_their_own_shares():
    logits = torch.tensor([[0.0, 2.0, 1.0, -3.0, 1.5]]).expand(4000, -1)
    config = GenerationConfig(temperature=0.5, top_k=3)
    tokens, _ = pick(logits, config, generators(*range(4000)))
    expected = torch.zeros(5)
    expected[[1, 4, 2]] = (logits[0, [1, 4, 2]] / 0.5).softmax(-1)
    drawn = tokens.bincount(minlength=5) / 4000
    assert (drawn - expected).abs().max() < 0.032 and not drawn[expected == 0].any()


def test_the_nucleus_is_cut_out_of_what_top_k_leaves():
    """Of four equal tokens two stay, and of these half the mass is one."""
    logits = torch.tensor([[1.0, 1.0, 0.9, 0.9]]).expand(500, -1)
    both = GenerationConfig(temperature=1.0, top_k=2, top_p=0.5)
    assert len(pick(logits, both, generators(*range(500)))[0].unique()) == 1
    wide = GenerationConfig(temperature=1.0, top_k=10, top_p=1.0)
    assert len(pick(logits, wide, generators(*range(500)))[0].unique()) == 4
    with pytest.raises(ValueError, match="top-k -1"):
        GenerationConfig(top_k=-1)


def test_a_penalty_is_that_of_transformers_and_changes_nothing_at_one():
    from transformers import RepetitionPenaltyLogitsProcessor

    logits = torch.randn(3, 50, generator=torch.Generator().manual_seed(1))
    before, replies = logits.clone(), [[3, 3, 7], [], [49, 0]]
    found = penalised(logits, replies, 1.5)
    for row, ids in enumerate(replies):
        expected = logits[row : row + 1]
        if ids:
            expected = RepetitionPenaltyLogitsProcessor(1.5)(torch.tensor([ids]), expected.clone())
        assert torch.equal(found[row], expected[0])
    assert torch.equal(logits, before) and penalised(logits, replies, 1.0) is logits
    with pytest.raises(ConfigError, match="repetition-penalty"):
        GenerationConfig(repetition_penalty=0.5)


def test_a_few_tokens_are_drawn_as_if_the_others_had_no_probability():
    logits = 3 * torch.randn(4, 900, generator=torch.Generator().manual_seed(4))
    few = torch.randperm(890, generator=torch.Generator().manual_seed(5))[:400].sort().values
    # Of the tokens that a reply was made to begin with some may have no logit.
    other = sorted(set(range(900)) - set(few.tolist()))
    replies = [few[[7, 7, 300]].tolist(), [], few[:3].tolist(), [other[0], other[-1]]]
    for options in ({"temperature": 0.0}, {"top_p": 0.5}, {"top_k": 7}, {}):
        config = GenerationConfig(**{"temperature": 1.3, **options})
        expected = penalised(logits, replies, 1.5)
        held = torch.full_like(expected, -torch.inf).index_copy_(1, few, expected[:, few])
        whole = pick(held, config, generators(*range(4)))
        only = penalised(logits[:, few], replies, 1.5, few)
        assert torch.equal(only, expected[:, few])
        tokens, log_probs = pick(only, config, generators(*range(4)), few=few)
        assert torch.equal(tokens, whole[0])
        assert torch.allclose(log_probs, whole[1], atol=1e-5)
    among = {0: [other[5], int(few[9]), int(few[33])], 2: other[:3]}
    tokens, _ = pick(logits[:, few], GenerationConfig(), [None] * 4, few=few, among=among)
    assert tokens[0] in few[[9, 33]] and int(tokens[0]) == max(
        few[[9, 33]].tolist(), key=lambda token: logits[0, token]
    )
    assert tokens[1:].tolist() == few[logits[1:, few].argmax(-1)].tolist()
