"""A served model answers from all that it was shown, or there is an error that says what to do."""

import gc
import math
import re
import time
import warnings

import numpy as np
import pytest

from streammem.captioning.captioner import Captioner, CaptionRequest
from streammem.errors import ConfigError, ServedModelError
from streammem.models.backbones.language import GenerationConfig
from streammem.models.protocols import ComposedModel, EvidenceItem, readable
from streammem.models.registry import open_generator
from streammem.models.vlm.server import KEY, REQUESTS, Spend, retry_after
from streammem.output.render import to_json
from streammem.types import Segment
from tests.model_server import MESSAGES, NAME, ModelServer, message_of, parts_of, picture_tokens
from tests.tiny import COLOURS, tiny_model

NAMES = list(COLOURS)
FAST = "?tries=2&backoff_s=0.01"
WORDS = GenerationConfig(max_new_tokens=24)
KINDS = ("openai", "ollama")


@pytest.fixture(autouse=True)
def no_key(monkeypatch):
    monkeypatch.delenv(KEY, raising=False)


def opened(server, kind="openai", options=FAST, **more):
    return open_generator(getattr(server, kind) + options, **more)


def flat(colour, width=32, height=24):
    return np.tile(np.array(COLOURS[colour], np.uint8), (height, width, 1))


def items(*colours):
    return [
        EvidenceItem(10.0 * i, 10.0 * i + 5, keyframes=(flat(colour),), caption=f"Scene {i}.")
        for i, colour in enumerate(colours)
    ]


def answer(generator, *colours, question="Which colours?", decoding=WORDS):
    prompt = generator.answer_prompt(items(*colours), question)
    return "".join(generator.stream(prompt, decoding))


# -- what is sent --


@pytest.mark.parametrize("kind", KINDS)
def test_pictures_arrive_in_time_order_with_a_time_text_before_each(kind):
    with ModelServer("fuses") as server:
        said = answer(opened(server, kind), "red", "blue", "blue", "green")
        assert said == "I see red, blue, blue, green.", "neighbours are never fused"
        parts = parts_of(server.prompts[-1])
    for before, part in zip(["", *parts], parts, strict=False):
        assert isinstance(part, str) or re.match(r"\[\d\d:\d\d\.\d-", str(before))


@pytest.mark.parametrize("kind", KINDS)
def test_a_caption_shows_four_pictures_of_its_scene(kind):
    with ModelServer(context=9000) as server:
        generator = opened(server, kind)
        frames = tuple(flat(colour) for colour in [*NAMES, *NAMES])
        prompt = generator.caption_prompt(EvidenceItem(3.0, 9.0, keyframes=frames))
        (reply,) = [r for r in generator.replies([prompt], WORDS) if r]
        assert reply[0].text.count(",") == 3
        assert server.seen[-1][0] == NAMES[0] and server.seen[-1][-1] == NAMES[-1]
        assert sum(not isinstance(p, str) for p in parts_of(server.prompts[-1])) == 4


@pytest.mark.parametrize("kind", KINDS)
def test_connections_end_with_the_model_that_kept_them(kind, recwarn):
    warnings.simplefilter("always", ResourceWarning)
    gc.collect()
    recwarn.clear()
    with ModelServer(context=9000) as server:
        generator = opened(server, kind)
        answer(generator, "red")
        del generator
        gc.collect()
    assert not [w for w in recwarn if issubclass(w.category, ResourceWarning)]


def test_ollama_is_asked_for_room_and_never_to_drop_what_is_old():
    with ModelServer(context=9000) as server:
        answer(opened(server, "ollama"), "red")
        sent = server.prompts[-1]
    assert sent["options"]["num_ctx"] == 9000, "what the model has, below the default"
    assert (sent["truncate"], sent["shift"], sent["think"]) == (False, False, False)
    assert sent["keep_alive"] == "30m" and sent["stream"] is False


def test_options_of_a_name_reach_the_server():
    with ModelServer(context=40_000) as server:
        answer(opened(server, "ollama", "?context=20000&keep_alive=5m"), "red")
        assert server.prompts[-1]["options"]["num_ctx"] == 20000
        assert server.prompts[-1]["keep_alive"] == "5m"
        with pytest.raises(ConfigError, match="contxt: no such option"):
            opened(server, "ollama", "?contxt=1")
        with pytest.raises(ConfigError, match="context=3"):
            opened(server, "openai", "?context=3")


def test_thinking_is_turned_off_where_the_server_knows_how():
    with ModelServer(owner="vllm") as server:
        answer(opened(server), "red")
        assert server.prompts[-1]["chat_template_kwargs"] == {"enable_thinking": False}
    with ModelServer(owner="someone") as server:
        answer(opened(server), "red")
        assert "chat_template_kwargs" not in server.prompts[-1]


@pytest.mark.parametrize("fault", ["wants max_completion_tokens", "wants no temperature"])
def test_an_option_that_is_refused_is_left_out_from_then_on(fault):
    with ModelServer(fault) as server:
        generator = opened(server)
        assert answer(generator, "red") == "I see red."
        refused = len(server.requests)
        assert answer(generator, "blue") == "I see blue."
        again = server.requests[refused:]
    assert all("max_completion_tokens" in r or "temperature" not in r for r in again)


def test_a_size_is_measured_once_and_text_once_for_all_times():
    with ModelServer() as server:
        generator = opened(server)
        answer(generator, "red", "blue")
        asked = len(server.requests)
        assert asked == 4, "a picture, the same without it, the text, and the answer"
        prompt = generator.answer_prompt(
            [item._replace(start=item.start + 21) for item in items("red", "blue")],
            "Which colours?",
        )
        "".join(generator.stream(prompt, WORDS))
        assert len(server.requests) == asked + 1, "other digits need no other measure"


# -- context --


@pytest.mark.parametrize(("owner", "kind"), [
    ("vllm", "openai"), ("llamacpp", "openai"), ("lmstudio", "openai"), ("any", "ollama"),
])  # fmt: skip
def test_the_context_is_known(owner, kind):
    with ModelServer(owner=owner, context=5000) as server:
        assert opened(server, kind).context == 5000


def test_the_weakest_evidence_goes_where_the_context_has_no_room_and_never_the_oldest():
    with ModelServer(context=1536 + 2 * 768) as server:
        generator = opened(server)
        assert generator.reads.pictures == 2
        scored = [
            item._replace(score=score)
            for item, score in zip(items("red", "blue", "green"), (0.9, 0.1, 0.6), strict=True)
        ]
        prompt = generator.answer_prompt(readable(scored, generator.reads), "Which?")
        assert "".join(generator.stream(prompt, WORDS)) == "I see red, green."
        assert generator.reads.pictures == 8, "now it is known how little a picture takes"


@pytest.mark.parametrize("kind", KINDS)
def test_a_prompt_that_does_not_fit_is_an_error_before_it_is_sent(kind):
    with ModelServer(context=512) as server:
        generator = opened(server, kind)
        with pytest.raises(ServedModelError) as raised:
            answer(generator, "red", question="word " * 600)
        assert server.prompts == []
    where = "the model server" if kind == "openai" else "Ollama"
    path = "/v1" if kind == "openai" else ""
    assert re.fullmatch(
        rf"{where} at {server.url}{path}: the prompt does not fit into the context of 512 tokens: "
        r"it takes \d+ tokens, and 24 to reply; start the server with a larger one, or show it "
        r"less \(\?pictures=2\)",
        str(raised.value),
    )


# -- faults --


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("fault", MESSAGES)
def test_a_fault_of_the_server_is_an_error_and_never_an_answer(fault, kind):
    with ModelServer(fault) as server:
        pieces = []
        with pytest.raises(ServedModelError) as raised:
            generator = opened(server, kind)
            prompt = generator.answer_prompt(items("red", "blue", "green"), "Which colours?")
            pieces += generator.stream(prompt, WORDS)
        assert "".join(pieces) == ""
        assert re.fullmatch(message_of(fault, generator.server), str(raised.value))


@pytest.mark.parametrize("fault", ["429", "500", "malformed", "cut"])
def test_a_fault_that_passes_is_tried_again(fault):
    with ModelServer(fault, times=1) as server:
        assert answer(opened(server), "red", "blue") == "I see red, blue."


def test_a_cut_reply_is_an_error():
    with ModelServer("cut") as server, pytest.raises(ServedModelError, match="broke off in the"):
        answer(opened(server), "red")


def test_a_reply_of_another_form_is_an_error():
    with ModelServer("other form") as server, pytest.raises(ServedModelError, match="other form"):
        answer(opened(server), "red")


def test_a_slow_server_is_given_up_and_frames_are_perceived_meanwhile():
    with ModelServer("slow") as server:
        generator = opened(server, options="?timeout_s=0.4")
        began, pieces = time.monotonic(), []
        with pytest.raises(ServedModelError) as raised:
            pieces += generator.stream(generator.answer_prompt(items("red"), "What?"), WORDS)
        assert time.monotonic() - began < 4
    assert str(raised.value) == (
        f"the model server at {server.url}/v1: no whole reply within 0.4 s; show it less "
        "(?pictures=4), or wait longer (?timeout_s=300)"
    )


def test_empty_pieces_come_while_a_reply_is_waited_for():
    with ModelServer() as server:
        generator = opened(server)
        server.release.clear()
        pieces = generator.stream(generator.answer_prompt(items("red"), "What?"), WORDS)
        assert [next(pieces), next(pieces)] == ["", ""]
        server.release.set()
        assert "".join(pieces) == "I see red."


def test_retry_after_is_kept_to_and_too_long_a_wait_is_an_error():
    waits = []
    with ModelServer("429", times=1, retry_after="7") as server:
        generator = opened(server)
        generator.server.wait = waits.append
        assert answer(generator, "red") == "I see red."
    assert waits == [7.0]
    with ModelServer("429", retry_after="3600") as server:
        generator = opened(server)
        with pytest.raises(ServedModelError, match=r"slow down, and asks to wait 3600 s; ask it"):
            answer(generator, "red")
    assert retry_after("Wed, 21 Oct 2015 07:28:00 GMT") == 0.0
    assert [retry_after(value) for value in (None, "soon", "nan", "inf", "-3")] == [0.0] * 5


def test_back_off_doubles():
    waits = []
    with ModelServer("500") as server:
        generator = opened(server, options="?tries=4&backoff_s=0.5")
        generator.server.wait = waits.append
        with pytest.raises(ServedModelError, match="4 tries"):
            answer(generator, "red")
    assert waits == [0.5, 1.0, 2.0]


def test_what_a_server_says_is_cleaned_and_bounded():
    with ModelServer("dirty") as server:
        said = answer(opened(server), "red")
        assert said.startswith("[31mI see red.")
        assert all(sign.isprintable() for sign in said)
        server.reply = "word " * 50_000
        assert len(answer(opened(server), "red")) <= 20_000
        server.reply = "<think>A red one.</think>\nRed."
        server.fault = None
        assert answer(opened(server), "red") == "Red."


def test_batches_come_in_order_and_at_most_so_many_are_under_way():
    with ModelServer() as server:
        generator = opened(server, options="?concurrency=3")
        assert generator.batches
        prompts = [generator.caption_prompt(items(name)[0]) for name in NAMES]
        replies = [reply[0].text for reply in generator.replies(prompts, WORDS) if reply]
    assert replies == [f"I see {name}." for name in NAMES]
    with ModelServer() as server:
        assert not opened(server, options="?concurrency=1").batches


# -- opening --


def test_a_server_that_is_not_there_is_known_at_once():
    with ModelServer() as server:
        pass
    began = time.monotonic()
    with pytest.raises(ServedModelError) as raised:
        open_generator(server.ollama)
    assert time.monotonic() - began < 5
    message = str(raised.value)
    assert message.startswith(f"Ollama at {server.url}: cannot be reached (")
    assert message.endswith("); run: ollama serve")


def test_a_model_that_is_not_there_is_named_with_those_that_are():
    with ModelServer() as server:
        with pytest.raises(ServedModelError) as raised:
            open_generator(f"openai:{server.url}#other")
        assert str(raised.value) == (
            f"the model server at {server.url}/v1: has no model other; it has {NAME}"
        )
        with pytest.raises(ServedModelError) as raised:
            open_generator(f"ollama:{server.url}#other")
        assert str(raised.value) == (
            f"Ollama at {server.url}: has no model other (model 'other' not found); "
            "run: ollama pull other"
        )
        assert open_generator(f"openai:{server.url}").model.name == NAME, "the only one"
    with ModelServer("no list") as server:
        assert opened(server).model.name == NAME, "where none are listed any is tried"


@pytest.mark.parametrize("kind", KINDS)
def test_a_model_that_sees_nothing_is_refused_at_the_start(kind):
    with (
        ModelServer("blind", owner="llamacpp") as server,
        pytest.raises(ServedModelError, match=f"{NAME} sees no pictures; take a model that does"),
    ):
        opened(server, kind)


@pytest.mark.parametrize("kind", KINDS)
def test_a_key_comes_from_the_environment_and_is_never_shown(kind, monkeypatch):
    with ModelServer("unauthorised") as server:
        with pytest.raises(ServedModelError) as raised:
            opened(server, kind)
        where = str(raised.value).partition(": refuses")[0]
        assert str(raised.value) == f"{where}: refuses access (HTTP 401); set {KEY} to its key"
        monkeypatch.setenv(KEY, "no such key")
        with pytest.raises(ServedModelError, match="to another key") as raised:
            opened(server, kind)
        assert "no such key" not in str(raised.value)
        assert server.headers[-1]["Authorization"] == "Bearer no such key"
    with ModelServer("500") as server:
        monkeypatch.setenv(KEY, "out of memory")
        with pytest.raises(ServedModelError, match=r"HTTP 500: \.\.\., 2 tries"):
            answer(opened(server, kind), "red")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("openai:gpt", "give openai:URL#NAME"),
        ("openai:ftp://a/v1#b", "http or https"),
        ("openai:http://me:secret@host/v1#b", KEY),
        ("openai:http://#b", "cannot be read"),
        ("ollama:", "give ollama:NAME"),
        ("ollama:http://host#", "give ollama:NAME"),
    ],
)
def test_a_name_that_means_nothing_is_refused(name, message):
    with pytest.raises(ConfigError, match=message) as raised:
        open_generator(name)
    assert "secret" not in str(raised.value)


@pytest.mark.parametrize("option", ["num_beams", "repetition_penalty"])
def test_beams_and_penalties_are_refused(option):
    named = option.replace("_", "-")
    with ModelServer() as server, pytest.raises(ConfigError, match=named):
        answer(opened(server), "red", decoding=GenerationConfig(**{option: 2}))


# -- the budget --


def test_a_budget_holds_for_an_hour():
    now = [0.0]
    spend = Spend(tokens=100, requests=5, clock=lambda: now[0])
    for _ in range(5):
        spend.begin("there")
        now[0] += 60
    with pytest.raises(ServedModelError) as raised:
        spend.begin("there")
    assert str(raised.value) == (
        "there: not asked, the budget of 5 requests an hour is spent; it goes on within 55 min, or "
        "give a larger --spend"
    )
    now[0] = 3601
    spend.begin("there")
    spend.add(110)
    with pytest.raises(ServedModelError, match="100 tokens an hour is spent"):
        spend.begin("there")


@pytest.mark.parametrize("text", ["", "0", "x", "1,2,3", "-5", "nan"])
def test_a_budget_that_means_nothing_is_refused(text):
    with pytest.raises(ConfigError, match="--spend"):
        Spend.read(text)


def test_two_generators_share_a_budget():
    spend = Spend.read(",8")
    before = REQUESTS.counts
    with ModelServer() as server:
        captions, answers = opened(server, spend=spend), opened(server, "ollama", spend=spend)
        answer(captions, "red")
        with pytest.raises(ServedModelError, match="8 requests an hour"):
            answer(answers, "red")
    counts = REQUESTS.counts.since(before)
    assert counts.requests == 8 and counts.tokens > 0 and counts.failures == 0


def test_a_picture_costs_what_the_server_counts():
    with ModelServer() as server:
        generator = opened(server)
        answer(generator, "red")
        picture = next(p for p in parts_of(server.prompts[-1]) if not isinstance(p, str))
        assert generator.count(["At noon:", flat("red")])[1] == picture_tokens(picture)


# -- how likely the words are --


def caption_of(server, kind="openai", options=FAST):
    generator = opened(server, kind, options)
    model = ComposedModel("seer", "seer-1", tiny_model(), tiny_model(), generator)
    request = CaptionRequest(
        Segment(0, 0.0, 1.0, None, "cut"), np.eye(16)[:1], None, (flat("red"),)
    )
    (scored,) = Captioner(model).caption([request])
    return scored.of(request.segment)


@pytest.mark.parametrize("kind", KINDS)
def test_a_caption_is_as_likely_as_the_server_states_its_words(kind):
    with ModelServer() as server:
        assert caption_of(server, kind).likelihood is None
        server.log_probs = [-0.1, -0.5, 0.0]
        caption = caption_of(server, kind)
    assert caption.likelihood == round(math.exp(-0.2), 3)
    assert list(to_json(caption))[-1] == "likelihood"


@pytest.mark.parametrize("stated", [["-0.1"], [None], [-0.1, 7.0], [-0.1, float("-inf")], [True]])
def test_what_cannot_be_a_log_probability_gives_no_likelihood(stated):
    with ModelServer() as server:
        server.log_probs = stated
        assert caption_of(server).likelihood is None


def test_only_servers_that_know_log_probabilities_are_asked_for_them():
    for owner, is_asked in (("vllm", True), ("llamacpp", True), ("library", False)):
        with ModelServer(owner=owner) as server:
            caption_of(server)
            assert ("logprobs" in server.prompts[-1]) is is_asked
    with ModelServer("wants no logprobs") as server:
        assert caption_of(server).text == "I see red."
