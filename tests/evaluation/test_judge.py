"""A judge of open answers: its verdict stands beside the scores, and its reply is not trusted."""

import json
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from streammem.cli import main
from streammem.errors import ConfigError, ServedModelError
from streammem.evaluation.asking import RunConfig, ask_suite
from streammem.evaluation.judge import Judge
from streammem.evaluation.questions import QuestionSet, SuiteQuestion
from streammem.evaluation.report import markdown, summarise
from streammem.evaluation.scoring import Reply
from streammem.models.vlm.server import ServerOptions

ONCE = ServerOptions(tries=1, backoff_s=0.0, timeout_s=20.0)


@contextmanager
def endpoint(reply):
    """A server on loopback; ``reply`` makes text, or a status, of a request."""
    requests = []

    class Endpoint(BaseHTTPRequestHandler):
        def do_POST(self):
            length = int(self.headers["content-length"])
            requests.append((self.path, json.loads(self.rfile.read(length))))
            made = reply(requests[-1][1])
            status, body = (made, {"error": {"message": "no"}}) if isinstance(made, int) else (
                200, made if isinstance(made, dict) else
                {"choices": [{"message": {"role": "assistant", "content": made}}]},
            )  # fmt: skip
            content = json.dumps(body).encode()
            self.send_response(status)
            self.send_header("content-length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_): ...

    with ThreadingHTTPServer(("127.0.0.1", 0), Endpoint) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}/v1#judge:1b", requests
        finally:
            server.shutdown()
            thread.join()


@pytest.mark.parametrize(
    ("said", "verdict"),
    [
        ("yes", 1.0), ("No.", 0.0), (" **Yes** \n", 1.0), ("<think>no? yes</think>\nno", 0.0),
        ("yes and no", None), ("The answer is yes", None), ("", None),
        ({"choices": [{"message": {"content": None}}]}, None),
        ("y", None), ({"choices": []}, None), ({"choices": "yes"}, None), ({}, None),
        ({"choices": [{"message": {"content": ["yes"]}}]}, None),
    ],
)  # fmt: skip
def test_only_a_plain_yes_or_no_is_a_verdict(said, verdict):
    with endpoint(lambda _: said) as (url, requests):
        assert Judge.open(url, ONCE)("What?", ("coffee",), "It is coffee.") == verdict
    ((path, sent),) = requests
    assert path == "/v1/chat/completions" and sent["model"] == "judge:1b"
    shown = sent["messages"][-1]["content"]
    assert "What?" in shown and "- coffee" in shown and "It is coffee." in shown


def test_what_is_sent_has_a_bound():
    with endpoint(lambda _: "no") as (url, requests):
        Judge.open(url, ONCE)("q" * 10_000, ("r" * 10_000,), "a" * 10_000)
    assert len(requests[0][1]["messages"][-1]["content"]) < 6500


def open_questions(count=24):
    made = tuple(
        SuiteQuestion(str(n), f"v{n % 4}", f"What is it? ({n})", references=("a red cup",),
                      check="text")
        for n in range(count)
    )  # fmt: skip
    return QuestionSet("mlvu", made, (), "0" * 12)


class Blind:
    num_bytes, fingerprint = 0, "weights"

    def ask(self, asked, context):
        return Reply("a cup that is red" if int(asked.text[-2]) % 2 else "a dog")


def judged(url, out=None):
    config = RunConfig(("blind",), "letter")
    found = open_questions()
    run = ask_suite(
        found, None, Blind, config, model="fake", progress=False, out=out,
        judge=Judge.open(url, ONCE),
    )  # fmt: skip
    return run, summarise(found, run)


def test_a_verdict_stands_beside_the_scores_with_the_judges_name_and_date(tmp_path):
    def reply(sent):
        shown = sent["messages"][-1]["content"]
        if "(3)" in shown:
            return "I cannot say"
        return "yes" if "a cup that is red" in shown else "no"

    with endpoint(reply) as (url, requests):
        _, report = judged(url, tmp_path)
        judged(url, tmp_path)
    assert len(requests) == 24, "what was judged is kept"
    scores = report["parts"]["all"]["contexts"]["blind"]
    assert scores["strict"][0] == 0.0 and scores["judged"][3] == 23
    assert scores["judged"][0] == pytest.approx(11 / 23, abs=1e-4)
    assert report["judge"]["name"].endswith("#judge:1b") and report["judge"]["no verdict"] == 1
    text = markdown(report)
    assert "judged right" in text and f"on {report['judge']['date']}" in text
    assert "1 of 24 replies of it were no verdict" in text
    with pytest.raises(ConfigError, match="another judge"):
        judged("http://127.0.0.1:1/v1#another", tmp_path)


@pytest.mark.parametrize(
    ("status", "why"), [(500, "HTTP 500"), (401, "refuses access"), (404, "404")]
)
def test_a_judge_that_cannot_be_asked_ends_the_run_and_nothing_is_scored_silently(status, why):
    with endpoint(lambda _: status) as (url, _), pytest.raises(ServedModelError, match=why):
        judged(url)
    with pytest.raises(ServedModelError, match="cannot be reached"):
        judged("http://127.0.0.1:1/v1#judge")


@pytest.mark.parametrize(
    "text", ["judge", "http://host/v1", "http://host/v1#", "ftp://host#m", "http://a:b@host/v1#m"]
)
def test_what_names_no_judge_is_refused_before_anything_is_opened(tmp_path, capsys, text):
    assert main(["eval", "mlvu", str(tmp_path), "--context", "blind", "--judge", text]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_a_suite_without_open_answers_needs_no_judge(tmp_path, capsys):
    row = {"question_id": "1", "video": "v", "question_type": "x", "question": "?",
           "candidates": ["a", "b"], "answer": "a"}  # fmt: skip
    (tmp_path / "q.json").write_text(json.dumps([row]))
    line = ["eval", "mlvu", str(tmp_path), "--context", "blind", "--judge", "http://h/v1#m"]
    assert main(line) == 2
    assert "no open answers" in capsys.readouterr().err
