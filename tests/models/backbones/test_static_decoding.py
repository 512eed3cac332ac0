"""Laws of static caches: the words are those of the usual cache, and beginnings are read once."""

from contextlib import contextmanager

import numpy as np
import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    MistralConfig,
    Qwen2Config,
    Qwen3Config,
)

from streammem.errors import ConfigError
from streammem.models.backbones import static_decoding
from streammem.models.backbones.language import (
    DECODING_VARIABLE,
    CausalLanguageModel,
    GenerationConfig,
)
from tests.tiny import tiny_tokenizer

SHORT = GenerationConfig(max_new_tokens=12)
# Llama is SmolLM2's, Vicuna's and VideoLLaMB's layout; Mistral is MiniGPT4-Video's.
LAYOUTS = {
    "llama": (LlamaConfig, {"tie_word_embeddings": True}),
    "llama of one key head": (LlamaConfig, {"num_key_value_heads": 1}),
    "mistral": (MistralConfig, {"sliding_window": None}),
    "qwen2": (Qwen2Config, {}),
    "qwen3": (Qwen3Config, {"head_dim": 8}),
}


def opened(layout="llama", **options):
    torch.manual_seed(0)
    tokenizer = tiny_tokenizer()
    kind, own = LAYOUTS[layout]
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
    sizes |= {"num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": len(tokenizer)}
    config = kind(**sizes | own | options, bos_token_id=1, eos_token_id=2, pad_token_id=0)
    model = AutoModelForCausalLM.from_config(config).eval().requires_grad_(False)
    for parameter in model.parameters():  # else every word follows from the last one alone
        parameter.data *= 3 if parameter.ndim == 2 else 1
    return model, tokenizer


def pair(layout="llama"):
    """A language model over static caches, and the same over transformers' own cache."""
    model, tokenizer = opened(layout)
    static, usual = (CausalLanguageModel(model, tokenizer, decoding=d) for d in ("static", "exact"))
    usual.decoder = lambda: None
    return static, usual


def seen(count, seed=0):
    return torch.randn(count, 32, generator=torch.Generator().manual_seed(seed))


def asked(language, number, visual=None):
    visual = seen(5, number) if visual is None else visual
    return language.chat([visual, "What is this?" + " Say more." * number])


def words(language, prompts, config=SHORT, count=1):
    return [
        [reply.ids for reply in replies] for replies in language.candidates(prompts, config, count)
    ]


@pytest.mark.parametrize(
    "layout",
    [name if name == "llama" else pytest.param(name, marks=pytest.mark.heavy) for name in LAYOUTS],
)
def test_words_are_those_of_the_usual_cache_alone_together_and_of_candidates(layout):
    static, usual = pair(layout)
    prompts = [asked(static, number) for number in range(3)]
    assert static.decoding == "static"
    for count in (1, 4):
        assert words(static, prompts, count=count) == words(usual, prompts, count=count)
    # Prompts of other lengths in one batch, as a GPU reads those of many sessions.
    static.decoder().rows_apart = True
    for count in (1, 4):
        assert words(static, prompts, count=count) == words(usual, prompts, count=count)
    texts = ["a", "That is a dog.", "No."]
    for found, wanted in zip(
        static.log_probs(prompts[0], texts), usual.log_probs(prompts[0], texts), strict=True
    ):
        assert torch.allclose(torch.tensor(found), torch.tensor(wanted), atol=1e-4)


def test_what_prompts_begin_with_alike_is_read_once():
    static, usual = pair()
    memory = seen(16)  # a recurrent memory that stands before what is asked
    prompts = [[memory, f"What comes {word}?"] for word in ("first", "last", "next")]
    lengths = [len(static.embed(prompt)) for prompt in prompts]
    found, read = [], []
    for prompt in prompts:
        before = static.decoder().num_read
        found += words(static, [prompt])
        read.append(static.decoder().num_read - before)
    common = len(memory) + len("What comes ")
    assert read == [lengths[0], lengths[1], lengths[2] - common]
    assert found == words(usual, prompts)
    # Together they are read behind it, too; candidates of one are read once.
    static.decoder().rows_apart = True
    before = static.decoder().num_read
    assert words(static, prompts, count=4) == words(usual, prompts, count=4)
    assert static.decoder().num_read - before == 3 * (max(lengths) - common)


def test_a_beginning_that_padded_prompts_share_is_kept_without_the_padding():
    static, usual = pair()
    memory = seen(16)
    prompts = [[memory, text] for text in ("What?", "Where is it, and whose?", "Who?")]
    static.decoder().rows_apart = True
    assert words(static, prompts) == words(usual, prompts)
    before = static.decoder().num_read
    assert words(static, prompts[2:]) == words(usual, prompts[2:])
    assert static.decoder().num_read - before == 16 + len("Who?")  # after two prompts alike
    assert words(static, prompts) == words(usual, prompts)
    before = static.decoder().num_read
    assert words(static, prompts[2:]) == words(usual, prompts[2:])
    assert static.decoder().num_read - before < 16


def test_prompts_of_any_lengths_behind_a_shared_beginning_are_each_as_if_read_alone():
    """Logits to 1e-4 of a float32 path, which words alone would hide: padding is not read."""
    model, _ = opened()
    decoder = static_decoding.StaticDecoder(model, together=True)
    draw = np.random.default_rng(0)
    heads = [seen(count, count) for count in (9, 30)]
    num_read = num_given = 0
    for number in range(8):
        head, lengths = heads[number // 2 % 2], draw.integers(1, 30, draw.integers(2, 5))
        rows = [torch.cat([head, seen(n, 100 + i)]) for i, n in enumerate(lengths.tolist())]
        if number % 3 == 0:  # one parts from what the others begin with
            rows[-1] = torch.cat([head[: -1 - number], seen(20, number)])
        tokens = torch.from_numpy(draw.integers(3, 20, (len(rows), 2)))
        before = decoder.num_read
        run = decoder.start(rows, room=2)
        found = [run.logits.clone()]
        for token in tokens.T:
            run.feed(token)
            found.append(run.logits.clone())
        for i, row in enumerate(rows):
            alone = torch.cat([row, model.get_input_embeddings()(tokens[i])])[None]
            wanted = model(inputs_embeds=alone).logits[0, -3:]
            torch.testing.assert_close(
                torch.stack([step[i] for step in found]), wanted, atol=1e-4, rtol=0
            )
        num_read += decoder.num_read - before
        num_given += len(rows) * (len(head) + max(lengths))
    assert num_read < 0.85 * num_given  # beginnings were in use


def test_prompts_whose_caches_would_be_too_large_are_not_continued_together(monkeypatch):
    static, usual = pair()
    prompts = [asked(static, number) for number in range(5)]
    longest = max(len(static.embed(prompt)) for prompt in prompts)
    decoder = static.decoder()
    decoder.rows_apart = True
    sizes = []
    start = decoder.start
    monkeypatch.setattr(
        decoder, "start", lambda rows, *more: (sizes.append(len(rows)), start(rows, *more))[1]
    )
    # Of two layers, keys and values of two heads of 8 in float32, two prompts of two replies.
    monkeypatch.setattr(static_decoding, "MOST_TOGETHER", 2 * 2 * 2 * 2 * 8 * 4 * 2 * longest)
    assert words(static, prompts, count=2) == words(usual, prompts, count=2)
    assert sizes == [2, 2, 1]


def test_a_beginning_that_differs_in_one_value_is_read_anew():
    static, usual = pair()
    memory = seen(16)
    prompts = [[memory, text] for text in ("What?", "Where?")]
    words(static, prompts)
    other = memory.clone()
    other[3, 5] += 1e-6
    static_read = static.decoder().num_read
    assert words(static, [[other, "What?"]]) == words(usual, [[other, "What?"]])
    assert static.decoder().num_read - static_read == 16 + len("What?")


@pytest.mark.heavy
def test_beginnings_that_are_kept_have_a_bound(monkeypatch):
    monkeypatch.setattr(static_decoding, "MOST_SHARED", 40)
    monkeypatch.setattr(static_decoding, "MOST_IDLE", 40_000)  # one cache of 128 columns, not two
    static, usual = pair()
    for seed in range(6):
        prompts = [[seen(17, seed), text] for text in ("What?", "Where?", "Who?")]
        assert words(static, prompts) == words(usual, prompts)
        kept = [len(each.embedded) for each in static.decoder()._beginnings]
        assert 0 < sum(kept) <= 40
        static.candidates([prompts[0]], SHORT, 2)  # in a cache of two rows, which is too large
        assert len(static.decoder()._pool._idle) <= 1


def test_generations_in_turns_and_caches_used_again_keep_apart():
    static, usual = pair()
    long, short = asked(static, 6), asked(static, 0)
    wanted = ["".join(usual.stream(prompt, SHORT)) for prompt in (long, short)]
    for _ in range(2):  # the second time in the caches of the first
        steps = [static.stream(prompt, SHORT) for prompt in (long, short)]
        found = ["", ""]
        for _ in range(SHORT.max_new_tokens + 1):
            for number, pieces in enumerate(steps):
                found[number] += next(pieces, "")
        assert found == wanted
        del steps, pieces
    pool = static.decoder()._pool
    assert len(pool._idle) == 2 and pool._idle[0] is not pool._idle[1]


def test_layers_that_see_a_part_keep_the_usual_cache_and_cannot_be_forced(monkeypatch):
    LAYOUTS["mistral that forgets"] = (MistralConfig, {"sliding_window": 8})
    model, tokenizer = opened("mistral that forgets")
    with pytest.raises(ConfigError, match="decoding static: some layers"):
        CausalLanguageModel(model, tokenizer, decoding="static")
    assert CausalLanguageModel(model, tokenizer).decoding == "transformers"
    whole, tokenizer = opened()
    monkeypatch.setenv(DECODING_VARIABLE, "static")
    assert CausalLanguageModel(whole, tokenizer).decoding == "static"
    assert CausalLanguageModel(whole, tokenizer, decoding="exact").decoding == "exact"
    monkeypatch.setenv(DECODING_VARIABLE, "fast")
    with pytest.raises(ConfigError, match="STREAMMEM_DECODING"):
        CausalLanguageModel(whole, tokenizer)


class Recording:
    """What a CUDA graph does, on the CPU: tensors stay, and a replay computes from them anew."""

    made: list["Recording"] = []  # noqa: RUF012
    caches: list[static_decoding.StaticCache] = []  # noqa: RUF012

    def __init__(self):
        self.replays = 0
        self.made.append(self)

    def replay(self):
        self.replays += 1
        (cache,) = [cache for cache in self.caches if cache._graph is self]
        cache.logits.copy_(cache._forward())


class Stream:
    def wait_stream(self, _):
        pass


@contextmanager
def recorded(graph, **_):
    yield


@contextmanager
def on_stream(_):
    yield


def as_on_cuda(monkeypatch):
    """Let caches record their steps."""
    made = static_decoding.StaticCache.__init__

    def init(self, *arguments):
        made(self, *arguments)
        self._is_eager = False
        Recording.caches.append(self)

    monkeypatch.setattr(static_decoding.StaticCache, "__init__", init)
    Recording.made.clear()
    Recording.caches.clear()


@pytest.mark.heavy
def test_a_step_that_is_recorded_gives_the_same_words(monkeypatch):
    static, usual = pair()
    prompts = [asked(static, number) for number in (1, 0, 2)]
    as_on_cuda(monkeypatch)
    for name, stands_in in {
        "CUDAGraph": Recording, "Stream": Stream, "current_stream": Stream,
        "stream": on_stream, "graph": recorded,
    }.items():  # fmt: skip
        monkeypatch.setattr(torch.cuda, name, stands_in)
    assert words(static, prompts, count=4) == words(usual, prompts, count=4)
    assert words(static, prompts) == words(usual, prompts)
    # One for four rows and one for one, which serve all prompts.
    assert len(Recording.made) == 2 and all(graph.replays > 20 for graph in Recording.made)


def test_a_step_that_cannot_be_recorded_goes_on_without(monkeypatch, caplog):
    static, usual = pair()
    as_on_cuda(monkeypatch)
    assert words(static, [asked(static, 0)]) == words(usual, [asked(static, 0)])
    assert "no CUDA graph of this model's steps" in caplog.text


def test_a_step_uses_sdpa_whatever_reads_the_prompt():
    model, tokenizer = opened()
    model.set_attn_implementation("eager")  # whose masks are other ones
    static = CausalLanguageModel(model, tokenizer, decoding="static")
    usual = CausalLanguageModel(model, tokenizer, decoding="exact")
    assert words(static, [asked(static, 0)]) == words(usual, [asked(static, 0)])
    assert model.config._attn_implementation == "eager"
