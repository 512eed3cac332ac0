"""The command line with a model behind a server: each of its faults is one line and exit code 1."""

import re

import pytest

from streammem.models import checkpoint
from streammem.models.vlm.server import KEY, Server, ServerOptions
from tests.command_line import events
from tests.model_server import MESSAGES, NAME, ModelServer, message_of

FAST = "?tries=2&backoff_s=0.01"
QUESTION = "What is this?"


@pytest.fixture(autouse=True)
def no_key(monkeypatch):
    monkeypatch.delenv(KEY, raising=False)


def test_a_served_model_captions_a_file(run, video):
    with ModelServer(context=9000) as server:
        code, out, err = run("caption", video, "--model", server.ollama, "--format", "jsonl")
    assert (code, err) == (0, "")
    captions = [event["text"] for event in events(out)]
    assert len(captions) == 3
    for text, colour in zip(captions, ("red", "blue", "green"), strict=True):
        assert set(re.findall(r"\w+", text)) == {"I", "see", colour}


def test_ours_captions_and_the_served_model_answers(run, video):
    with ModelServer(context=20_000) as server:
        code, out, err = run("ask", video, QUESTION, "--answer-with", server.openai)
        asked = server.prompts
    assert (code, err) == (0, "")
    assert out.startswith("I see red, blue, green, ")
    assert "score" in out and len(asked) == 1, "the server made no captions"


def test_the_served_model_captions_and_ours_answers(run, video):
    with ModelServer(context=20_000) as server:
        given = ("--caption-with", server.openai, "--format", "jsonl", "--max-new-tokens", "4")
        code, out, _ = run("ask", video, QUESTION, *given)
    assert code == 0
    (answer,) = events(out)
    assert all(item["caption"].startswith("I see ") for item in answer["evidence"])
    assert not answer["text"].startswith("I see")


def test_an_answer_says_what_had_no_room(run, video):
    with ModelServer(context=20_000) as server:
        name = f"{server.openai}?pictures=2"
        code, out, _ = run("ask", video, QUESTION, "--answer-with", name)
        assert code == 0
        assert out.startswith("I see ") and out.partition("\n")[0].count(",") == 1
        assert "\n  no room for 5 pictures of the weakest evidence\n" in out
        given = ("--answer-with", name, "--format", "jsonl")
        (answer,) = events(run("ask", video, QUESTION, *given)[1])
        assert answer["left_out"] == 5


@pytest.mark.parametrize("fault", MESSAGES)
@pytest.mark.parametrize("kind", ["openai", "ollama"])
def test_a_fault_is_one_line_and_exit_code_1(run, video, fault, kind):
    with ModelServer(fault, context=9000) as server:
        name = getattr(server, kind)
        url = server.url + ("/v1" if kind == "openai" else "")
        shown = Server(url, *TITLES[kind], ServerOptions())
        code, out, err = run("ask", video, QUESTION, "--answer-with", name + FAST)
    assert (code, out) == (1, "")
    # One picture of three scenes, and four of the present.
    wanted = message_of(fault, shown).replace("3\\ pictures", "7\\ pictures")
    wanted = re.sub(r"\b4096\b", "9000", wanted)  # not within the port
    assert re.fullmatch(f"streammem: {wanted}\n", err), err


TITLES = {
    "openai": (
        "the model server",
        "start the server, or correct the address; it ends in /v1 mostly",
    ),
    "ollama": ("Ollama", "run: ollama serve"),
}


def test_a_slow_server_is_one_line_and_exit_code_1(run, video):
    with ModelServer("slow") as server:
        code, out, err = run(
            "ask", video, QUESTION, "--answer-with", f"{server.ollama}?timeout_s=0.3"
        )
    assert (code, out) == (1, "")
    assert err == (
        f"streammem: Ollama at {server.url}: no whole reply within 0.3 s; show it less "
        "(?pictures=4), or wait longer (?timeout_s=300)\n"
    )


def test_a_file_whose_captions_fail_keeps_what_it_has_and_ends_with_1(run, video):
    with ModelServer("500") as server:
        code, out, err = run("caption", video, "--caption-with", server.openai + FAST)
    assert (code, out) == (1, "")
    assert err.startswith("streammem: the model server at ") and "HTTP 500" in err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--model", "openai:gpt"), "openai:gpt: give openai:URL#NAME"),
        (("--answer-with", "gpt"), "gpt: captions and answers are written with openai:URL#NAME, "),
        (("--spend", "x", "--model", "ollama:a"), "--spend x: give tokens an hour"),
        (("--spend", "100"), "--spend is for what is asked of a server; leave it out"),
    ],
)
def test_what_means_nothing_is_exit_code_2(run, video, arguments, message):
    code, out, err = run("caption", video, *arguments)
    assert (code, out) == (2, "")
    assert err.startswith(f"streammem: {message}"), err


def test_a_budget_is_kept(run, video):
    with ModelServer(context=9000) as server:
        code, _, err = run("caption", video, "--caption-with", server.openai, "--spend", ",6")
        assert code == 1
        assert "not asked, the budget of 6 requests an hour is spent" in err
        assert len(server.requests) <= 6


def test_a_memory_is_the_same_whichever_model_answers(run, video, tmp_path):
    memory = tmp_path / "kept.mem"
    assert run("caption", video, "--memory", memory, "-o", tmp_path / "out.txt")[0] == 0
    with ModelServer(context=20_000) as server:
        code, out, _ = run("ask", memory, QUESTION, "--answer-with", server.ollama)
    assert code == 0
    assert out.startswith("I see red, blue, green.")


def test_the_models_fingerprint_is_ours(run, video, monkeypatch, model):
    with ModelServer(context=20_000) as server:
        from streammem import load

        assert load(server.openai).fingerprint == checkpoint.load_checkpoint().fingerprint
    assert NAME not in model.name


# -- models check --


def test_check_prints_a_table_and_what_to_use(run):
    with ModelServer(context=20_000) as server:
        server.calls.append(("look", {"seconds": 12}))
        code, out, err = run("models", "check", f"{server.url}/v1#{NAME}")
    assert (code, err) == (0, "")
    assert re.sub(r"\d+\.\d s", "0.0 s", out.replace(server.url, "URL")).splitlines() == [
        f"ok  model                {NAME} (vllm) at the model server at URL/v1",
        "ok  context              20000 tokens",
        "ok  picture of 320x180   922 tokens",
        "ok  picture of 640x360   3602 tokens",
        "ok  picture of 1280x720  14402 tokens",
        "ok  1 colour             right, 949 tokens",
        "ok  order of 2 colours   right, 1873 tokens",
        "ok  order of 4 colours   right, 3721 tokens",
        "ok  order of 8 colours   right, 7417 tokens",
        "ok  caption              0.0 s (4 pictures, 3 tokens): I see red, blue, yellow, black.",
        "ok  tools                yes",
        "=>  it is fast enough for captions of a camera: --model",
    ]


def test_check_says_how_many_pictures_a_server_keeps(run):
    with ModelServer("keeps the first", context=20_000) as server:
        code, out, _ = run("models", "check", server.ollama)
    assert code == 0
    lines = out.splitlines()
    assert lines[5].startswith("ok  1 colour ")
    assert lines[6].startswith("--  order of 2 colours   Ollama at") and "lost pictures" in lines[6]
    assert lines[-2] == "=>  write ?pictures=1 behind its name"


@pytest.mark.parametrize("fault", ["ignores pictures", "reasons", "uncounted"])
def test_check_ends_with_1_where_a_model_cannot_be_used(run, fault):
    with ModelServer(fault, context=20_000) as server:
        code, out, err = run("models", "check", server.openai)
    assert (code, err) == (1, "")
    assert out.splitlines()[-1] == (
        "=>  do not use it: it does not see, or does not say what it sees"
    )


@pytest.mark.parametrize(
    ("calls", "has_tools", "said"),
    [
        ([("look", {"seconds": 12})], True, "ok  tools                yes"),
        ([("look", {"seconds": 3})], True, "--  tools                no: it called look("),
        ([("search", {"text": "a"})], True, "--  tools                no: it called search("),
        ([], True, "--  tools                no: instead of a call it says 'I see nothing.'"),
        ([], False, "--  tools                no: "),
    ],
)
@pytest.mark.parametrize("form", ["openai", "ollama"])
def test_check_tells_whether_it_calls_a_tool(run, form, calls, has_tools, said):
    with ModelServer(context=20_000) as server:
        server.calls, server.has_tools = [*calls], has_tools
        code, out, err = run("models", "check", getattr(server, form))
    assert (code, err) == (0, "")
    (line,) = [line for line in out.splitlines() if line[4:].startswith("tools ")]
    assert line.startswith(said)
    assert out.splitlines()[-1].startswith("=>  it is fast enough")  # no tools, and still of use


@pytest.mark.parametrize("fault, code", [(None, 0), ("drops a token", 1)])
def test_check_compares_our_own_language_model_with_the_served_one(run, monkeypatch, fault, code):
    language = checkpoint.load_checkpoint().language
    monkeypatch.setattr(checkpoint, "open_embeddings", lambda name: language)
    with ModelServer(fault, language=language) as server:
        result, out, err = run("models", "check", server.vllm)
    lines = out.splitlines()
    assert (result, lines[0]) == (
        code,
        f"ok  model                {NAME} at vLLM at {server.url}/v1",
    )
    if fault:
        assert "did not read the prompt as it was sent" in err
    else:
        assert [line[:3] for line in lines] == ["ok "] * 4


def test_an_exported_language_model_comes_with_the_command_that_serves_it(run, monkeypatch):
    monkeypatch.setattr(checkpoint, "export_language", lambda name, folder: None)
    code, out, _ = run("models", "export", "streammem-tiny", "my folder")
    assert (code, out) == (0, "vllm serve 'my folder' --enable-prompt-embeds\n")


def test_check_is_for_served_models(run):
    code, _, err = run("models", "check", "some-folder")
    assert code == 2 and "captions and answers are written with" in err


def test_what_a_server_was_asked_is_counted(run, video, tmp_path):
    metrics = tmp_path / "metrics"
    with ModelServer("500", times=1, context=9000) as server:
        given = ("--caption-with", server.openai + FAST, "--stats", "1h", "--format", "jsonl")
        code, out, _ = run("watch", video, *given, "--metrics", metrics)
        asked = len(server.requests)
    assert code == 0
    (stats,) = (event for event in events(out) if event["type"] == "stats")
    counted = {key: stats[key] for key in ("requests", "retries", "failures")}
    assert counted == {"requests": asked, "retries": 1, "failures": 0}
    assert stats["tokens"] > 0
    (line,) = re.findall(r"^streammem_model_server_requests_total.*", metrics.read_text(), re.M)
    assert line.endswith(f" {asked}")
