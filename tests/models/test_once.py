"""Parts of a model open once, whichever threads ask first; what each is given is what one gets."""

import json
import subprocess
import sys
import threading

import pytest
import torch
from transformers import BertConfig, BertModel, BertTokenizerFast

from streammem.models.backbones.language import CausalLanguageModel, GenerationConfig
from streammem.models.backbones.products import has_half
from streammem.models.backbones.text import TEXT_DIM, SentenceEncoder
from streammem.models.backbones.weights import is_pulled
from streammem.models.checkpoint import DEFAULT, PRESETS, backbones_of
from streammem.models.once import once, opening
from tests.models.opened_by_many import asked, fresh_processes, open_model
from tests.tiny import tiny_language

FEW = GenerationConfig(max_new_tokens=6)
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "dog", "cat", "runs", "on", "grass"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Files of a tiny language model and a tiny sentence encoder."""
    folder = tmp_path_factory.mktemp("parts")
    language = tiny_language()
    language.model.save_pretrained(folder / "llama")
    language.tokenizer.save_pretrained(folder / "llama")
    torch.manual_seed(0)
    sizes = {"hidden_size": TEXT_DIM, "intermediate_size": 32, "num_attention_heads": 4}
    config = BertConfig(vocab_size=len(WORDS), num_hidden_layers=1, **sizes)
    BertModel(config, add_pooling_layer=False).save_pretrained(folder / "bert")
    BertTokenizerFast(vocab={w: i for i, w in enumerate(WORDS)}).save_pretrained(folder / "bert")
    return folder


def run_together(*calls):
    """Run calls in threads that start at once; give their results, or errors, in order."""
    together, given = threading.Barrier(len(calls)), [None] * len(calls)

    def run(place):
        together.wait(60)
        try:
            given[place] = calls[place]()
        except Exception as error:  # noqa: BLE001, looked at by the test
            given[place] = error

    threads = [threading.Thread(target=run, args=(place,)) for place in range(len(calls))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    return given


# -- Once --


def test_a_part_is_opened_once_however_many_ask():
    opened, slow = [], threading.Event()

    def open_part():
        slow.wait(0.1)
        opened.append(object())
        return opened[-1]

    part = once(open_part, "part")
    assert run_together(*[part] * 8) == [*opened] * 8
    assert once(part, "part") is part


def test_no_two_parts_are_opened_at_a_time():
    busy, slow = threading.Lock(), threading.Event()

    def open_part():
        assert busy.acquire(blocking=False), "two at a time"
        slow.wait(0.02)
        busy.release()
        return True

    @opening("part")
    def decorated():
        return open_part()

    parts = [once(open_part, f"part {n}") for n in range(6)]
    assert run_together(*parts, decorated, decorated) == [True] * 8


def test_a_part_may_open_another():
    inner = once(lambda: "inner", "inner")
    outer = once(lambda: f"outer of {inner()}", "outer")
    assert run_together(outer, inner, outer) == ["outer of inner", "inner", "outer of inner"]


def test_a_failure_is_raised_to_each_that_asks_and_tried_again():
    tries = []

    def open_part():
        tries.append(0)
        if len(tries) <= 4:
            raise OSError("no space left")
        return "part"

    part = once(open_part, "part")
    assert [repr(e) for e in run_together(*[part] * 4)] == ["OSError('no space left')"] * 4
    assert (part(), part(), len(tries)) == ("part", "part", 5)


def test_what_was_opened_is_logged_with_its_time(caplog):
    caplog.set_level("INFO")
    part = once(lambda: "part", "streammem-tiny: language model")
    part()
    part()
    (line,) = caplog.messages
    assert line.startswith("streammem-tiny: language model opened in 0.0 s")


# -- the parts themselves --


@pytest.mark.skipif(not has_half(), reason="needs FBGEMM and AVX2")
def test_a_decoder_that_could_not_be_arranged_is_arranged_by_the_next_to_ask(folder, monkeypatch):
    from streammem.models.backbones import decoding

    language = CausalLanguageModel.open(folder / "llama", decoding="half")
    expected = CausalLanguageModel.open(folder / "llama", decoding="half").generate([["Hi"]], FEW)
    layer, calls = decoding._layer, []

    def failing(*given):
        calls.append(given)
        if len(calls) == 2:  # the first layer has been taken out of the model
            raise MemoryError("no room")
        return layer(*given)

    monkeypatch.setattr(decoding, "_layer", failing)
    with pytest.raises(MemoryError):
        language.generate([["Hi"]], FEW)
    assert language.generate([["Hi"]], FEW) == expected


def test_an_edit_that_fails_leaves_no_half_edited_model(folder):
    language = CausalLanguageModel.open(folder / "llama")
    expected, fails = language.generate([["Hi"]], FEW), [False]

    def change(model):
        if fails[0]:
            raise MemoryError("no room")
        model.lm_head.weight.data += 0

    language.edit(change)
    language.decoder()  # with float16 it takes the model apart, so that beams read it again
    fails[0] = language._model is None
    if fails[0]:
        with pytest.raises(MemoryError):
            language.generate([["Hi"]], GenerationConfig(max_new_tokens=6, num_beams=2))
    fails[0] = False
    assert language.generate([["Hi"]], FEW) == expected


def test_sentences_of_many_threads_are_each_read_as_if_alone(folder):
    encoder = SentenceEncoder(folder / "bert")
    texts = [[" ".join(["a dog"] * n)] * n for n in range(1, 9)]  # padded and cut differently
    expected = [encoder.encode(each) for each in texts]
    for _ in range(20):
        found = run_together(*(lambda each=each: encoder.encode(each) for each in texts))
        assert all(map(torch.equal, found, expected))


def test_what_is_typed_stays_text_while_other_threads_tokenise_signs(folder):
    language = CausalLanguageModel.open(folder / "llama")
    typed = language.embed(["<|im_end|>"])
    calls = [lambda: language.embed(["<|im_end|>"]), lambda: language.ids("<|im_end|>")] * 4
    for _ in range(50):
        found = run_together(*calls)
        assert all(torch.equal(embedded, typed) for embedded in found[::2])
        assert found[1::2] == [[2]] * 4


# -- fresh processes --


def opened_by_many(name, number):
    """What each of eight threads was given in a fresh process."""
    command = [sys.executable, "-m", "tests.models.opened_by_many", str(name), str(number)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(done.stdout.splitlines()[-1])


def as_json(given):
    return json.loads(json.dumps(given))


@pytest.fixture(scope="module")
def expected_tiny(folder):
    return as_json([call() for call in asked(open_model(str(folder)))])


@pytest.fixture(scope="module")
def expected():
    missing = [name for name in backbones_of(PRESETS[DEFAULT]) if not is_pulled(name)]
    if missing:
        pytest.skip(f"weights are not here; run: streammem models pull {' '.join(missing)}")
    return as_json([call() for call in asked(open_model(DEFAULT))])


@pytest.mark.parametrize("number", fresh_processes(1))
def test_eight_threads_that_open_a_tiny_model_get_what_one_gets(folder, expected_tiny, number):
    assert opened_by_many(folder, number) == expected_tiny


# A server that is asked the moment it is healthy opens it so in `make test`.
@pytest.mark.parametrize("number", fresh_processes(0))
def test_eight_threads_that_open_the_default_model_get_what_one_gets(expected, number):
    assert opened_by_many(DEFAULT, number) == expected
