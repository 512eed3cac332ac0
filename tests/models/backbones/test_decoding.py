import gc
import weakref
from dataclasses import replace
from itertools import takewhile

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from streammem.errors import ConfigError
from streammem.models.backbones import language, products
from streammem.models.backbones.decoding import LlamaDecoder, _silu
from streammem.models.backbones.language import CausalLanguageModel, GenerationConfig
from streammem.models.backbones.products import BLOCK, FUSE, has_bfloat16, has_half
from streammem.models.backbones.sampling import penalised
from tests.tiny import talkative_language, tiny_tokenizer

GREEDY = GenerationConfig(max_new_tokens=12)
NEEDS_HALF = pytest.mark.skipif(not has_half(), reason="needs FBGEMM and AVX2")
NEEDS_BFLOAT16 = pytest.mark.skipif(not has_bfloat16(), reason="needs AVX-512 BF16 or AMX")
ROUTES = ["exact", pytest.param("half", marks=NEEDS_HALF)]
ALL_ROUTES = [*ROUTES, pytest.param("bfloat16", marks=NEEDS_BFLOAT16)]


def llama(route, seed=0):
    made = talkative_language(seed)
    return CausalLanguageModel(made.model, made.tokenizer, decoding=route)


def prompts_of(model, count=12):
    """Chat prompts of unlike lengths, about unlike visual tokens."""
    generator = torch.Generator().manual_seed(3)
    lengths = torch.randint(1, 9, (count,), generator=generator).tolist()
    visual = [torch.randn(n, model.width, generator=generator) for n in lengths]
    return [
        model.chat([v, "Describe it, please."[:n]]) for n, v in zip(lengths, visual, strict=True)
    ]


@torch.inference_mode()
def said_by_transformers(model, prompt):
    rows = model.embed(prompt)[None]
    ids = model.model.generate(
        inputs_embeds=rows,
        attention_mask=torch.ones(rows.shape[:2], dtype=torch.long),
        max_new_tokens=GREEDY.max_new_tokens,
        do_sample=False,
        eos_token_id=model.stop_id,
        pad_token_id=0,
    )
    said = list(takewhile(lambda i: i != model.stop_id, ids[0].tolist()))
    return model.tokenizer.decode(said, skip_special_tokens=True).strip()


@torch.inference_mode()
def logits_of_transformers(model, prompt, ids):
    """[len(ids) + 1, V], along the prompt's continuation by ``ids``."""
    fed = torch.cat(
        [model.embed(prompt), model.model.get_input_embeddings()(torch.tensor(ids).long())]
    )
    return model.model(inputs_embeds=fed[None]).logits[0, -len(ids) - 1 :]


@torch.inference_mode()
def forced(decoder, rows, columns):
    """[B, T + 1, V] logits of the decoder along the tokens [B, T]."""
    run = decoder.start(rows, columns.shape[1])
    logits = [run.logits]
    for column in columns.T:
        run.feed(column)
        logits.append(run.logits)
    return torch.stack(logits, 1)


# -- the same function --


@pytest.mark.parametrize("stop_bias", [0.0, 3.0], ids=["all long", "ends at different times"])
def test_exact_says_what_transformers_says_alone_streamed_and_in_a_padded_batch(stop_bias):
    model = llama("exact")
    model.model.lm_head.bias.data[2] = stop_bias - 1000.0 * (not stop_bias)
    prompts = prompts_of(model)
    expected = [said_by_transformers(model, prompt) for prompt in prompts]
    assert len(set(expected)) > 8
    assert model.generate(prompts, GREEDY) == expected
    assert ["".join(model.stream(prompt, GREEDY)).strip() for prompt in prompts] == expected


@pytest.mark.parametrize("chat", [True, False], ids=["shared prefix", "no prefix"])
@pytest.mark.parametrize("route", ALL_ROUTES)
def test_logits_are_those_of_transformers_also_behind_padding(route, chat):
    model = llama(route)
    prompts = prompts_of(model, 5)
    if not chat:
        prompts = [prompt[1:] for prompt in prompts]
    ids = torch.randint(3, 200, (5, 6), generator=torch.Generator().manual_seed(0))
    expected = [
        logits_of_transformers(model, p, i.tolist()) for p, i in zip(prompts, ids, strict=True)
    ]
    with torch.inference_mode():
        found = forced(model.decoder(), [model.embed(prompt) for prompt in prompts], ids)
    heard = slice(3, None)  # logits of the other tokens are at -1000
    expected, found = torch.stack(expected)[..., heard], found[..., heard]
    spoken = expected[0, 0] > -500
    # float32 sums in another order; float16 has 11 bits, bfloat16 8
    bound = {"exact": 1e-4, "half": 0.1, "bfloat16": 1.5}[route]
    assert (found - expected)[..., spoken].abs().max() < bound


@NEEDS_HALF
def test_half_keeps_the_distribution():
    """The limits are those that the shipped model is held to."""
    exact, half = llama("exact"), llama("half")
    prompts = prompts_of(exact, 40)
    ids = torch.randint(3, 200, (40, 10), generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        rows = [exact.embed(prompt) for prompt in prompts]
        truth, guess = (forced(m.decoder(), rows, ids).log_softmax(-1) for m in (exact, half))
    assert not torch.equal(truth, guess)
    assert (truth.exp() * (truth - guess)).sum(-1).mean() <= 0.01
    assert (truth.argmax(-1) == guess.argmax(-1)).float().mean() >= 0.99


@NEEDS_HALF
def test_matrices_that_float16_cannot_hold_stay_in_float32():
    plain, stretched = llama("half"), llama("half")
    for block in stretched.model.model.layers:
        block.mlp.up_proj.weight.data *= 1e6
        block.mlp.down_proj.weight.data *= 1e-6
    ids = torch.randint(3, 200, (5, 6), generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        rows = [plain.embed(prompt) for prompt in prompts_of(plain, 5)]
        expected, found = (forced(m.decoder(), rows, ids) for m in (plain, stretched))
    assert (expected - found).abs().max() < 0.1


# -- together and alone --


@pytest.fixture(params=[1, 3])
def threads(request):
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield
    torch.set_num_threads(before)


@NEEDS_HALF
@pytest.mark.parametrize("count", [2, 3, 8, 17])
def test_half_gives_a_row_the_same_logits_to_the_bit_whoever_stands_beside_it(count, threads):
    model = llama("half")
    generator = torch.Generator().manual_seed(count)
    ids = torch.randint(3, 200, (count, 6), generator=generator)
    visual = torch.randn(count, 4, model.width, generator=generator)
    with torch.inference_mode():
        rows = [model.embed(model.chat([v, "Describe."])) for v in visual]
        decoder = model.decoder()
        assert decoder.are_apart(rows)
        together = forced(decoder, rows, ids)
        for row, own, found in zip(rows, ids, together, strict=True):
            assert torch.equal(forced(decoder, [row], own[None])[0], found)


def test_rows_are_apart_only_where_nothing_is_padded_and_nothing_but_half_multiplies():
    exact = llama("exact")
    rows = [torch.zeros(n, exact.width) for n in (5, 5, 6)]
    assert not exact.decoder().are_apart(rows[:2]) and not exact.speaks_together
    if has_half():
        half, stretched = llama("half"), llama("half")
        prefix = half.decoder().prefix
        prefixed = torch.cat([prefix, torch.zeros(2, half.width)])
        other = torch.zeros_like(prefixed)
        assert half.speaks_together and half.decoder().are_apart(rows[:2])
        assert half.decoder().are_apart(rows[:1])
        assert not half.decoder().are_apart(rows)
        assert not half.decoder().are_apart([prefixed, other])  # one of them is read from within
        stretched.model.model.layers[0].mlp.up_proj.weight.data *= 1e6
        assert not stretched.speaks_together


@pytest.mark.parametrize("route", ALL_ROUTES)
@pytest.mark.parametrize("count", [1, 4])
def test_candidates_of_a_prompt_do_not_depend_on_the_prompts_beside_it(route, count):
    """Words, and the log-probability of each to the bit: also of prompts of unlike lengths."""
    model = llama(route)
    model.model.lm_head.bias.data[2] = 6.0  # some end early, and leave the batch
    visual = torch.randn(9, 4, model.width, generator=torch.Generator().manual_seed(0))
    alike = [model.chat([v, "Describe."]) for v in visual]
    for prompts in (alike, prompts_of(model, 5)):
        alone = [model.candidates([prompt], GREEDY, count)[0] for prompt in prompts]
        assert len({replies[0].text for replies in alone}) > 3
        assert model.candidates(prompts, GREEDY, count) == alone
        assert [said for said in model.replies(prompts, GREEDY, count) if said] == alone


@NEEDS_HALF
@pytest.mark.parametrize("width", [31, 600], ids=["narrow", "wider than FBGEMM's block"])
def test_a_half_product_of_a_row_is_the_same_at_every_number_of_rows_and_at_every_place(width):
    torch.manual_seed(0)
    multiply = FUSE["half"]([torch.nn.Linear(width, 50)], None)
    rows = torch.randn(2 * BLOCK + 10, width)
    with torch.inference_mode():
        alone = torch.cat([multiply(row[None]) for row in rows])
        for count in (*range(1, 41), BLOCK - 1, BLOCK, BLOCK + 1, 2 * BLOCK + 7):
            for first in (0, 3):
                part = slice(first, first + count)
                assert torch.equal(multiply(rows[part]), alone[part]), (count, first)


@pytest.mark.parametrize("threads", [3, 5], indirect=True)
def test_a_row_that_several_threads_compute_is_what_it_is_alone(threads):
    rows = torch.randn(1037, 2 * 64, generator=torch.Generator().manual_seed(0))[:, :64]
    assert torch.equal(_silu(rows), torch.cat([_silu(row[None]) for row in rows]))


@NEEDS_HALF
def test_prompts_are_read_one_after_another_where_products_depend_on_their_neighbours(monkeypatch):
    expected = llama("half")
    monkeypatch.setattr(products, "row_counts", lambda width: ())
    model, sizes, start = llama("half"), [], LlamaDecoder.start
    monkeypatch.setattr(
        LlamaDecoder,
        "start",
        lambda d, rows, *a, **k: sizes.append(len(rows)) or start(d, rows, *a, **k),
    )
    assert not model.speaks_together and products.why_rows_are_apart()[0] is False
    prompts = [model.chat([torch.ones(4, model.width) * i, "Describe."]) for i in range(3)]
    said = model.candidates(prompts, GREEDY)
    assert sizes == [1, 1, 1]
    assert [[r.text for r in replies] for replies in said] == [
        [r.text for r in replies] for replies in expected.candidates(prompts, GREEDY)
    ]


@NEEDS_HALF
def test_rows_are_not_apart_where_what_stands_between_products_is_not(monkeypatch):
    """A sum that depends on the number of rows is found by the measurement at the start."""
    from streammem.models.backbones import decoding

    plain = decoding._direction
    monkeypatch.setattr(decoding, "_direction", lambda x: plain(x) * (1 + 1e-6 * (len(x) > 4)))
    assert not llama("half").speaks_together


# -- the cache --


def test_a_run_allocates_its_cache_once_and_never_more():
    model = llama("exact")
    with torch.inference_mode():
        rows = [model.embed(prompt) for prompt in prompts_of(model, 3)]
        run = model.decoder().start(rows, 4)
        place = run.cache.data_ptr()
        columns = max(len(row) for row in rows) + 4
        assert run.cache.shape == (2, 3, 2 * 2, columns, 8)  # layers, rows, keys and values
        for _ in range(4):
            run.feed(torch.tensor([5, 6, 7]))
        assert run.cache.data_ptr() == place
        with pytest.raises(IndexError, match="all are filled"):
            run.feed(torch.tensor([5, 6, 7]))


def test_the_prefix_that_prompts_share_is_read_once(monkeypatch):
    model, read, logits = llama("exact"), [], LlamaDecoder.logits

    def noted(decoder, x, *rest):
        read.append(x.shape[1])
        return logits(decoder, x, *rest)

    monkeypatch.setattr(LlamaDecoder, "logits", noted)
    prompts = prompts_of(model, 3)
    for prompt in prompts:
        model.generate([prompt], GenerationConfig(max_new_tokens=1))
    prefix = len(model.ids(model.chat_prefix))
    assert read == [prefix, *(len(model.embed(prompt)) - prefix for prompt in prompts)]


def test_two_replies_at_once_do_not_touch_each_other():
    model = llama("exact")
    first, second = prompts_of(model, 2)
    alone = [list(model.stream(prompt, GREEDY)) for prompt in (first, second)]
    one, other = model.stream(first, GREEDY), model.stream(second, GREEDY)
    mixed = [next(one), next(one)], list(other)
    assert [mixed[0] + list(one), mixed[1]] == alone


# -- replies that share what they have in common --


@NEEDS_HALF
def test_what_replies_have_in_common_is_computed_once(monkeypatch):
    """A step has a row for each beginning that a reply goes on from, not for each reply."""
    model, sizes, logits = llama("half"), [], LlamaDecoder.logits
    model.model.lm_head.bias.data[2] = 6.0  # some end early
    assert model.speaks_together  # which is measured, by steps of its own
    monkeypatch.setattr(
        LlamaDecoder, "logits", lambda d, x, *a, **o: sizes.append(x.shape[:2]) or logits(d, x, *a)
    )
    prompts = [model.chat([torch.ones(4, model.width) * i, "Describe."]) for i in range(2)]
    said = model.candidates(prompts, GREEDY, 6)
    beginnings = [
        len({(i, *r.ids[:n]) for i, replies in enumerate(said) for r in replies if len(r.ids) > n})
        for n in range(1, GREEDY.max_new_tokens)
    ]
    assert [rows for rows, columns in sizes if columns == 1] == [n for n in beginnings if n]
    assert beginnings[0] < max(beginnings) < 12


@pytest.mark.parametrize("route", ROUTES)
def test_rows_that_part_stay_or_end_go_on_as_if_each_were_alone(route):
    """Whatever the order: some rows part, some end, and one of those that stay has to move."""
    model = llama(route)
    steps = (
        [(1, 40), (0, 41), (1, 42), (2, 43), (1, 44)],
        [(4, 50), (3, 51), (4, 52)],
        [(0, 60), (2, 61), (0, 62), (2, 63), (1, 64), (0, 65)],
        [(5, 70)],
    )
    with torch.inference_mode():
        rows = [model.embed(prompt) for prompt in prompts_of(model, 3)]
        rows = [row[: min(map(len, rows))] for row in rows]
        decoder = model.decoder()
        run = decoder.start(rows, 4, replies=2)
        told = [(row, []) for row in range(3)]  # of each row of the run: its prompt, its tokens
        for continuations in steps:
            places = run.branch(continuations)
            assert sorted(places) == list(range(len(continuations)))
            before, told = told, [None] * len(places)
            for place, (row, token) in zip(places, continuations, strict=True):
                told[place] = (before[row][0], [*before[row][1], token])
            for logits, (prompt, tokens) in zip(run.logits, told, strict=True):
                alone = forced(decoder, [rows[prompt]], torch.tensor([tokens]))[0, -1]
                spoken = slice(3, None)
                if route == "half":
                    assert torch.equal(logits, alone)
                else:  # float32 sums in another order
                    assert torch.allclose(logits[spoken], alone[spoken], atol=1e-3)


# -- guesses --


class WrongGuesser:
    """Guesses like the half route, but for some tokens; and leaves rubbish in the columns."""

    def __init__(self, decoder, wrong):
        self.decoder, self.wrong, self.num_guesses = decoder, wrong, 0
        self.embed = decoder.embed

    def logits(self, x, run, places, mask):
        logits = self.decoder.logits(x, run, places, mask).clone()
        run.cache[:, :, :, run.length] = 1e3
        self.num_guesses += 1
        if self.num_guesses % self.wrong == 0:
            logits[0, 3] = logits.max() + 1
        return logits


@NEEDS_HALF
@pytest.mark.parametrize("wrong", [1, 2, 3, 7, 100])
def test_wrong_guesses_change_no_logits_and_the_cache_is_that_of_plain_steps(wrong):
    model = llama("exact")
    plain = LlamaDecoder(model.model, "exact", torch.zeros(0, model.width))
    plain.guesser = None
    guessing = LlamaDecoder(model.model, "exact", torch.zeros(0, model.width))
    guessing.guesser = WrongGuesser(guessing.guesser, wrong)
    for prompt in prompts_of(model, 4):
        with torch.inference_mode():
            runs = [d.start([model.embed(prompt)], 20) for d in (plain, guessing)]
            for _ in range(20):
                token = runs[0].logits.argmax(-1)
                for run in runs:
                    run.feed(token)
                # float32 sums in another order
                assert torch.allclose(runs[0].logits, runs[1].logits, atol=1e-3)
                filled = [run.cache[:, :, :, : run.length] for run in runs]
                assert torch.allclose(*filled, atol=1e-4)
    assert guessing.guesser.num_guesses > 4


@NEEDS_HALF
def test_words_of_a_coin_toss_to_float16_are_those_of_transformers():
    """Every letter has a twin that float16 cannot tell apart from it, now above it, now below."""
    model = llama("exact")
    head = model.model.lm_head
    letters = (head.bias > -500).nonzero()[:, 0]
    signs = torch.where(torch.arange(len(letters)) % 2 == 0, 1, -1)[:, None]
    twins = torch.arange(3, 3 + len(letters))  # signs of punctuation
    head.weight.data[twins] = head.weight[letters] * (1 + 2e-5 * signs)
    head.bias.data[twins] = 0.0
    half = CausalLanguageModel(model.model, model.tokenizer, decoding="half")
    prompts = prompts_of(model, 16)
    expected = [said_by_transformers(model, prompt) for prompt in prompts]
    assert [model.generate([prompt], GREEDY)[0] for prompt in prompts] == expected
    assert [half.generate([prompt], GREEDY)[0] for prompt in prompts] != expected


@NEEDS_HALF
@pytest.mark.parametrize("vocabulary", ["all", "captions"])
def test_most_steps_of_a_single_row_read_the_weights_for_several_tokens(monkeypatch, vocabulary):
    model, passes, logits = llama("exact"), [], LlamaDecoder.logits
    model.caption_tokens = torch.arange(5, model.num_tokens, 3)  # without one that ends a reply

    def noted(decoder, *given, **options):
        passes.append(decoder.route)
        return logits(decoder, *given, **options)

    monkeypatch.setattr(LlamaDecoder, "logits", noted)
    model.generate(prompts_of(model, 1), GenerationConfig(max_new_tokens=28, vocabulary=vocabulary))
    # The prefix, the prompt, and 27 tokens that are read: 16, then 11.
    assert passes.count("exact") == 2 + 2
    assert passes.count("half") == 27 - 2


@NEEDS_HALF
def test_nothing_is_guessed_behind_a_token_that_ends_a_reply(monkeypatch):
    model = llama("exact")
    model.model.lm_head.bias.data[2] = 1000.0  # it ends at once
    decoder = model.decoder()
    run = decoder.start([model.embed(prompts_of(model, 1)[0])], 8, ends={2})
    with torch.inference_mode():
        assert run._guess(torch.tensor([5])) == [2]


# -- samples --


def test_a_decoder_that_is_no_longer_used_is_freed_at_once():
    model = llama("exact")
    model.generate(prompts_of(model, 2), GREEDY)
    decoder = weakref.ref(model.decoder())
    gc.disable()  # training makes one a step: garbage collection would come too late
    try:
        model._prepared = None
        assert decoder() is None
    finally:
        gc.enable()


@pytest.mark.parametrize("route", ROUTES)
def test_samples_of_a_batch_are_what_each_seed_says_alone(route):
    model = llama(route)
    model.model.lm_head.bias.data[2] = 6.0  # some end early, and leave the batch
    prompts = prompts_of(model, 4)
    config = GenerationConfig(max_new_tokens=10, temperature=0.9, top_p=0.95, seed=7)
    sampled = model.sample(prompts, config, count=3)
    assert [len(replies) for replies in sampled] == [3] * 4
    assert len({len(reply.ids) for replies in sampled for reply in replies}) > 3
    for i, (prompt, replies) in enumerate(zip(prompts, sampled, strict=True)):
        for j, reply in enumerate(replies):
            seed = 7 + 3 * i + j
            alone = GenerationConfig(max_new_tokens=10, temperature=0.9, top_p=0.95, seed=seed)
            assert reply.text == "".join(model.stream(prompt, alone)).strip()


def test_samples_come_with_their_tokens_log_probabilities():
    model = llama("exact")
    model.model.lm_head.bias.data[2] = 6.0
    config = GenerationConfig(max_new_tokens=10, temperature=0.7, top_p=0.5)
    prompts = prompts_of(model, 4)
    ended = 0
    for prompt, (reply,) in zip(prompts, model.sample(prompts, config), strict=True):
        logits = logits_of_transformers(model, prompt, reply.ids)[:-1]
        expected = (logits / 0.7).log_softmax(-1)[range(len(reply.ids)), reply.ids]
        assert torch.allclose(torch.tensor(reply.log_probs), expected, atol=1e-4)
        ended += reply.ids[-1] == model.stop_id
        assert model.stop_id not in reply.ids[:-1]
    assert ended


def test_no_prompts_give_no_samples_and_beams_are_refused():
    model = llama("exact")
    assert model.sample([], GREEDY, count=2) == []
    with pytest.raises(ConfigError, match="beams are not samples"):
        model.sample(prompts_of(model, 1), GenerationConfig(num_beams=2))


# -- weights --


@pytest.mark.parametrize("route", ALL_ROUTES)
def test_a_weight_that_an_optimiser_changes_is_changed_in_the_next_reply(route):
    model = llama(route)
    prompts = prompts_of(model)
    before = model.generate(prompts, GREEDY)
    weight = model.model.model.layers[0].mlp.down_proj.weight.requires_grad_(True)
    model.model(inputs_embeds=model.embed(prompts[0])[None]).logits.sum().backward()
    torch.optim.SGD([weight], lr=1.0).step()
    weight.requires_grad_(False)
    after = model.generate(prompts, GREEDY)
    assert after != before
    if route == "exact":
        assert after == [said_by_transformers(model, prompt) for prompt in prompts]


def test_exact_keeps_no_second_copy_of_the_layers():
    model = llama("exact")
    model.generate(prompts_of(model, 1), GREEDY)
    block = model.model.model.layers[1]
    attention = [getattr(block.self_attn, f"{name}_proj").weight for name in "qkv"]
    assert len({weight.untyped_storage().data_ptr() for weight in attention}) == 1
    assert sum(weight.nbytes for weight in attention) == attention[0].untyped_storage().nbytes()


@pytest.mark.parametrize("route", ALL_ROUTES)
def test_a_lora_speaks_as_if_it_were_merged(route):
    peft = pytest.importorskip("peft")
    model = llama(route)
    prompts = prompts_of(model)
    plain = model.generate(prompts, GREEDY)
    torch.manual_seed(0)
    model.model = peft.get_peft_model(
        model.model, peft.LoraConfig(r=2, lora_alpha=8, target_modules=["q_proj", "down_proj"])
    )
    for name, parameter in model.model.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_()
    model.model.eval()
    assert model.decoding == route
    spoken = model.generate(prompts, GREEDY)
    model.model = model.model.merge_and_unload()
    assert spoken == model.generate(prompts, GREEDY) != plain


@pytest.fixture
def opened(tmp_path):
    """What opens a tiny model from a folder, with an edit of its weights."""
    made = talkative_language()
    torch.nn.init.zeros_(made.model.lm_head.bias)
    made.model.lm_head.bias = None
    made.model.config.tie_word_embeddings = False
    made.model.save_pretrained(tmp_path)
    made.tokenizer.save_pretrained(tmp_path)

    def open_it(route):
        language = CausalLanguageModel.open(tmp_path, decoding=route)
        language.edit(lambda llama: llama.model.layers[0].mlp.up_proj.weight.mul_(2))
        return language

    return open_it


@NEEDS_HALF
def test_half_lets_the_float32_weights_go_and_says_the_same(opened):
    kept, released = opened("half"), opened("half")
    assert kept.model is not None  # who was given the model may change it
    matrix = weakref.ref(released._model.model.layers[0].mlp.up_proj)
    prompts = prompts_of(kept, 4)
    expected = kept.generate(prompts, GREEDY)
    assert released.generate(prompts, GREEDY) == expected
    gc.collect()
    assert matrix() is None
    assert released.decoding == "half"
    assert released.generate(prompts, GREEDY) == expected
    assert kept.model.model.layers[0].mlp.up_proj.weight.numel()


@NEEDS_HALF
def test_beams_and_training_find_the_weights_again_with_all_edits(opened):
    plain, released = opened("exact"), opened("half")
    prompts = prompts_of(plain, 3)
    expected = released.generate(prompts, GREEDY)
    beams = GenerationConfig(max_new_tokens=8, num_beams=3)
    assert released.generate(prompts, beams) == plain.generate(prompts, beams)
    for name, value in plain.model.state_dict().items():
        assert torch.equal(released.model.state_dict()[name], value)
    assert released.generate(prompts, GREEDY) == expected


@NEEDS_HALF
def test_an_edit_after_the_weights_went_is_heard(opened):
    released = opened("half")
    prompts = prompts_of(released, 3)
    before = released.generate(prompts, GREEDY)

    def edit(llama):
        llama.model.layers[0].mlp.down_proj.weight.data.mul_(-3)

    released.edit(edit)
    after = released.generate(prompts, GREEDY)
    again = opened("half")
    again.edit(edit)
    assert after == again.generate(prompts, GREEDY) != before


# -- the choice --


def test_half_is_refused_where_it_cannot_run_and_auto_takes_exact(monkeypatch):
    monkeypatch.setattr(language, "has_half", lambda: False)
    with pytest.raises(ConfigError, match="decoding half: needs"):
        llama("half")
    assert llama("auto").decoding == "exact"
    with pytest.raises(ConfigError, match="give one of auto, exact, half, bfloat16"):
        llama("fast")


def test_bfloat16_is_only_chosen_by_name_and_refused_where_it_would_be_slow(monkeypatch):
    monkeypatch.setattr(language, "has_bfloat16", lambda: True)
    monkeypatch.setattr(language, "has_half", lambda: False)
    assert language.decoding_route("bfloat16") == "bfloat16"
    assert language.decoding_route("auto") == "exact"
    monkeypatch.setattr(language, "has_bfloat16", lambda: False)
    with pytest.raises(ConfigError, match="decoding bfloat16: needs"):
        llama("bfloat16")


def test_half_needs_the_instructions_that_make_it_fast(monkeypatch):
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "DEFAULT")
    assert not has_half()


def test_other_models_go_on_through_transformers():
    torch.manual_seed(0)
    tokenizer = tiny_tokenizer()
    config = GPT2Config(vocab_size=len(tokenizer), n_embd=32, n_layer=1, n_head=2, eos_token_id=2)
    model = CausalLanguageModel(GPT2LMHeadModel(config).eval(), tokenizer)
    assert model.decoding == "transformers"
    prompts = prompts_of(model, 3)
    assert model.generate(prompts, GREEDY) == [said_by_transformers(model, p) for p in prompts]
    config = GenerationConfig(max_new_tokens=5, temperature=1.0, seed=3)
    (first, second), *_ = model.sample(prompts, config, count=2)
    assert first.text == "".join(model.stream(prompts[0], config)).strip()
    assert first.ids != second.ids


# -- held to the tokens of captions --


@torch.inference_mode()
def said_within(model, prompt, allowed, penalty=1.0):
    """The ids of a greedy reply where each token is the likeliest of those allowed."""
    ids = []
    while len(ids) < GREEDY.max_new_tokens and model.stop_id not in ids:
        logits = penalised(logits_of_transformers(model, prompt, ids)[-1:], [ids], penalty)[0]
        ids.append(allowed[int(logits[allowed].argmax())])
    return ids


@pytest.mark.parametrize("route", [*ALL_ROUTES[:2], "static", "transformers"])
def test_replies_held_to_the_tokens_of_captions_have_the_likeliest_of_these(route):
    if route == "transformers":
        config = GPT2Config(vocab_size=len(tiny_tokenizer()), n_embd=16, n_layer=1, n_head=2)
        model = CausalLanguageModel(GPT2LMHeadModel(config).eval(), tiny_tokenizer())
    else:
        model = llama(route)
        torch.nn.init.uniform_(model.model.model.norm.weight, 0.5, 2.0)
    prompts = prompts_of(model, 6)
    allowed = sorted({model.stop_id, *range(5, model.num_tokens, 3)})
    model.caption_tokens = torch.tensor(allowed)
    expected = [said_within(model, prompt, allowed) for prompt in prompts]
    held = replace(GREEDY, vocabulary="captions")
    said = [model.candidates([prompt], held)[0][0].ids for prompt in prompts]
    assert said == expected
    assert [r.ids for (r,) in model.candidates(prompts, held)] == expected
    assert ["".join(model.stream(prompt, held)).strip() for prompt in prompts] == [
        r.text for (r,) in model.candidates(prompts, held)
    ]
    free = [r.ids for (r,) in model.candidates(prompts, GREEDY)]
    assert free != expected and set().union(*free) - set(allowed)
    drawn = model.sample(prompts, replace(held, temperature=2.0), count=3)
    assert set().union(*(r.ids for each in drawn for r in each)) <= set(allowed)
    penalty = replace(held, repetition_penalty=3.0)
    expected = [said_within(model, prompt, allowed, 3.0) for prompt in prompts]
    replies = [r for (r,) in model.candidates(prompts, penalty)]
    assert [r.ids for r in replies] == expected != said
    streamed = ["".join(model.stream(prompt, penalty)).strip() for prompt in prompts]
    assert streamed == [r.text for r in replies]


@pytest.mark.parametrize("route", ALL_ROUTES[:2])
def test_a_model_that_knows_no_captions_is_held_to_nothing(route):
    model, held = llama(route), replace(GREEDY, vocabulary="captions")
    prompts = prompts_of(model, 3)
    assert model.candidates(prompts, held) == model.candidates(prompts, GREEDY)
