"""Our own language model behind a server: the same words, or an error that says what to do."""

import re
from dataclasses import replace

import pytest
import torch

from streammem.engine.session import Session
from streammem.engine.session_config import SessionConfig
from streammem.errors import ConfigError, ServedModelError
from streammem.models import checkpoint
from streammem.models.backbones.language import CausalLanguageModel, GenerationConfig
from streammem.models.protocols import ComposedModel, EvidenceItem
from streammem.models.registry import load, open_generator
from streammem.models.vlm.embedded import EXPORT, START
from streammem.models.vlm.server import KEY, REQUESTS, Spend
from tests.model_server import NAME, ModelServer
from tests.sessions import FILM, SHORT, told
from tests.tiny import film, talkative_language, tiny_model

FAST = "?tries=2&backoff_s=0.01"
WORDS = GenerationConfig(max_new_tokens=24)


@pytest.fixture
def model(monkeypatch):
    """A model whose language model here has nothing but embeddings: its layers say nonsense."""
    monkeypatch.delenv(KEY, raising=False)
    whole = tiny_model()
    only = CausalLanguageModel(talkative_language().model, whole.language.tokenizer)
    only.model.model.layers = torch.nn.ModuleList()
    monkeypatch.setattr(checkpoint, "load_checkpoint", lambda name="", *, device="cpu": whole)
    monkeypatch.setattr(checkpoint, "open_embeddings", lambda name: only)
    return whole


def items(count=3):
    noise = torch.Generator().manual_seed(1)
    return [
        EvidenceItem(10.0 * i, 10.0 * i + 5, torch.randn(4, 32, generator=noise), f"Scene {i}.")
        for i in range(count)
    ]


def answer(generator, question="Which colours?", decoding=WORDS):
    return "".join(generator.stream(generator.answer_prompt(items(), question), decoding))


def captions(generator):
    prompts = [generator.caption_prompt(item) for item in items()]
    return [each[0].text for each in generator.replies(prompts, WORDS) if each]


def test_captions_and_answers_are_those_of_the_local_model_to_the_letter(model):
    with ModelServer(language=model.language) as server:
        served = open_generator(server.vllm + FAST)
        assert served.reads.tokens and not served.reads.pictures
        assert captions(served) == captions(model) and len(set(captions(model))) > 1
        assert answer(served) == answer(model) != ""
        assert server.prompts[-1]["temperature"] == 0.0


def test_a_session_captions_and_answers_as_with_the_local_model(model):
    def lived(of):
        options = SessionConfig(answer=SHORT, caption=SHORT, min_confidence=0.0)
        with Session(of, options) as session:
            told(session, film(*FILM))
            scenes = [entry.caption for entry in session.memory.entries()]
            return scenes, session.ask("What is seen?").text

    with ModelServer(language=model.language) as server:
        served = load(server.vllm + FAST)
        assert any(lived(served)[0])
        assert isinstance(served, ComposedModel) and "answer" not in served.session_options
        assert lived(served) == lived(replace(model, confidence_model=None, reranker=None))
        assert server.prompts


@pytest.mark.parametrize(
    "fault, message",
    [
        (
            "drops a token",
            r"did not read the prompt as it was sent: it counts (\d+) tokens of (\d+); its answer "
            "is not given; update vLLM, or see its log",
        ),
        (
            "refuses embeddings",
            r"takes no prompt_embeds \(HTTP 400: You must set `--enable-prompt-embeds` to input "
            rf"`prompt_embeds`\.\); {START}",
        ),
        (
            "another width",
            r"wants no embeddings of width 32 \(`prompt_embeds` hidden_size 32 does not match "
            rf"33\.\); {EXPORT}",
        ),
        ("wrong model", rf"other:1b answered instead of {NAME}; name a model that it serves .*"),
        ("500", "HTTP 500: out of memory, 2 tries; see the server's own log"),
        ("other form", r"its reply is of another form \(.*\); correct the address, .*"),
        ("unauthorised", rf"refuses access \(HTTP 401\); set {KEY} to its key"),
    ],
)
def test_a_server_that_fails_is_an_error_and_never_an_answer(model, fault, message):
    before = REQUESTS.counts
    with (
        ModelServer(fault, language=model.language) as server,
        pytest.raises(ServedModelError) as raised,
    ):
        answer(open_generator(server.vllm + FAST))
    assert re.fullmatch(f"vLLM at {server.url}/v1: {message}", str(raised.value))
    assert REQUESTS.counts.since(before).failures == 1


def test_a_prompt_that_does_not_fit_is_not_sent(model):
    with ModelServer(language=model.language, context=100) as server:
        with pytest.raises(ServedModelError, match=r"context of 100 tokens: .*--max-model-len"):
            answer(open_generator(server.vllm + FAST))
        assert not server.requests


def test_it_counts_against_the_budget_and_searches_no_beams(model):
    with ModelServer(language=model.language) as server:
        generator = open_generator(server.vllm + FAST, spend=Spend(tokens=100))
        assert answer(generator)
        with pytest.raises(ServedModelError, match="budget of 100 tokens"):
            answer(generator)
        with pytest.raises(ConfigError, match="searches no beams"):
            answer(open_generator(server.vllm), decoding=GenerationConfig(num_beams=2))


def test_only_a_model_of_ours_has_tokens_for_it(model, monkeypatch):
    other = ComposedModel("other", "f", model, model, model)
    monkeypatch.setattr(checkpoint, "load_checkpoint", lambda name="", *, device="cpu": other)
    with (
        ModelServer(language=model.language) as server,
        pytest.raises(ConfigError, match="a model of ours, which other is not"),
    ):
        load(server.vllm)


@pytest.mark.parametrize("seed, is_good", [(0, True), (5, False)])
def test_the_check_compares_its_words_with_those_of_the_local_model(model, seed, is_good):
    with ModelServer(language=talkative_language(seed)) as server:
        found = list(open_generator(server.vllm + FAST).findings(model))
    assert [finding.is_good for finding in found] == [True, True, True, is_good]
    assert (EXPORT in found[-1].result) is not is_good
