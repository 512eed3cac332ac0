"""A transcription server is asked piece by piece, and nothing that it sends is trusted."""

import io
import json
import math
import pickle
import re
import threading
import wave
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest

from streammem.audio.recogniser import RATE
from streammem.audio.track import SpeechOptions
from streammem.engine.watch import watch
from streammem.engine.watch_options import WatchOptions
from streammem.errors import ConfigError, ServedModelError
from streammem.models.transcription import MAX_CHARS, MAX_CHARS_S, recogniser
from streammem.models.vlm.server import KEY, SPEECH_KEY, Spend
from streammem.types import Note, Notice
from tests.audio.test_recogniser import with_sound
from tests.model_server import ModelServer
from tests.sessions import session_of
from tests.tiny import tiny_model

FAST = "?tries=2&backoff_s=0.01&timeout_s=5"
SOUND = np.full(2 * RATE, 0.5, np.float32)
SEGMENTS = [
    {"start": 0.1, "end": 0.8, "text": " Good morning,", "no_speech_prob": 0.1},
    {"start": 0.9, "end": 1.5, "text": " Ann."},
]
WORDS = [
    {"word": "Good", "start": 0.1, "end": 0.3},
    {"word": "morning", "start": 0.35, "end": 0.8},
    {"word": "Ann", "start": 0.95, "end": 1.5},
]
WHOLE = {"text": "Good morning, Ann.", "segments": SEGMENTS, "words": WORDS}


class Transcriber:
    """A transcription server on a free port.

    Args:
        replies: (status, body, headers) each, in order; the last one again and again.
        models: that it lists; None where it has no such list.

    Attributes:
        forms: fields of each request, by name, the file's bytes among them.
    """

    def __init__(self, *replies, models=("whisper-1",)):
        self.replies = [r if isinstance(r, tuple) else (200, json.dumps(r), {}) for r in replies]
        self.models, self.forms, self.keys = models, [], []
        handler = type("Handler", (_Handler,), {"server_of_tests": self})
        self._http = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self._http.daemon_threads = True
        self.url = f"openai:http://127.0.0.1:{self._http.server_port}/v1"
        self._thread = threading.Thread(target=self._http.serve_forever, args=(0.02,), daemon=True)

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._http.shutdown()
        self._http.server_close()
        self._thread.join(5)


class _Handler(BaseHTTPRequestHandler):
    server_of_tests: Transcriber

    def log_message(self, *_):
        pass

    def do_GET(self):
        models = self.server_of_tests.models
        rows = [{"id": name} for name in models or ()]
        self._send(404 if models is None else 200, json.dumps({"data": rows}), {})

    def do_POST(self):
        assert self.path == "/v1/audio/transcriptions"
        body = self.rfile.read(int(self.headers["Content-Length"]))
        mark = b"--" + self.headers["Content-Type"].partition("boundary=")[2].encode()
        form = {}
        for part in body.split(mark)[1:-1]:
            head, _, content = part.partition(b"\r\n\r\n")
            form.setdefault(re.search(rb'name="([^"]+)"', head)[1].decode(), []).append(
                content[:-2]
            )
        ours = self.server_of_tests
        ours.forms.append(form)
        ours.keys.append(self.headers["Authorization"])
        self._send(*(ours.replies.pop(0) if len(ours.replies) > 1 else ours.replies[0]))

    def _send(self, status, body, headers):
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body.encode())), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body.encode())


@pytest.fixture(autouse=True)
def no_key(monkeypatch):
    monkeypatch.delenv(KEY, raising=False)
    monkeypatch.delenv(SPEECH_KEY, raising=False)


def opened(server, name="#whisper-1", language=None):
    return recogniser(server.url + name + FAST, language)()


def heard(*replies, samples=SOUND):
    with Transcriber(*replies) as server:
        return list(opened(server).transcribe(samples))


def test_sentences_keep_their_times_and_those_of_their_words(monkeypatch):
    monkeypatch.setenv(KEY, "of the model server")
    monkeypatch.setenv(SPEECH_KEY, "of this one")
    with Transcriber(WHOLE) as server:
        said = list(opened(server, language="en").transcribe(SOUND))
    assert said == [Note(0.1, 0.8, "Good morning,", (0.1, 0.35)), Note(0.9, 1.5, "Ann.", (0.95,))]
    (form,) = server.forms
    assert (form["model"], form["language"]) == ([b"whisper-1"], [b"en"])
    assert form["timestamp_granularities[]"] == [b"segment", b"word"]
    with wave.open(io.BytesIO(form["file"][0])) as sound:
        assert (sound.getframerate(), sound.getnchannels(), sound.getnframes()) == (
            RATE,
            1,
            2 * RATE,
        )
    assert server.keys == ["Bearer of this one"]


def test_of_plain_text_a_piece_is_one_note_and_no_richer_form_is_asked_for_again():
    refusal = (400, '{"error": {"message": "verbose_json is not supported"}}', {})
    with Transcriber(refusal, refusal, {"text": " Hello there.\n"}) as server:
        hears = opened(server)
        assert [list(hears.transcribe(SOUND)) for _ in range(2)] == [
            [Note(0, 2, "Hello there.")]
        ] * 2
    forms = [form["response_format"] for form in server.forms]
    assert forms == [[b"verbose_json"], [b"verbose_json"], [b"json"], [b"json"]]


def test_words_that_are_not_the_sentences_give_no_times():
    other = WHOLE | {"words": [{"word": "Bad", "start": 0.1}, {"word": 3}, "x"]}
    assert [note.word_starts for note in heard(other)] == [(), ()]
    inner = [SEGMENTS[0] | {"words": WORDS[:2]}, SEGMENTS[1] | {"words": WORDS[2:]}]
    assert heard(WHOLE | {"words": None, "segments": inner}) == heard(WHOLE)


@pytest.mark.parametrize("start", [-3.0, 2.6, math.nan, math.inf, None, "1", True, 10**400])
def test_times_outside_the_sound_are_told_and_left_out(start):
    wrong = {"start": start, "end": 3.0, "text": "Elsewhere."}
    said = heard(WHOLE | {"segments": [wrong, *SEGMENTS]})
    assert [note.text for note in said if isinstance(note, Note)] == ["Good morning,", "Ann."]
    (notice,) = (item for item in said if isinstance(item, Notice))
    assert "1 of 3 sentences have times outside the sound" in notice.message


def test_too_much_text_is_cut_and_told_and_no_control_character_comes_through():
    most = MAX_CHARS + 2 * MAX_CHARS_S
    for reply in (
        {"text": "na " * 5000},
        {
            "text": "x",
            "segments": [{"start": i / 9, "end": 2, "text": "la" * 99} for i in range(9)],
        },
    ):
        notice, *notes = heard(reply)
        assert "too long for the sound" in notice.message
        assert sum(len(note.text) for note in notes) <= most
        assert all(0 <= note.start <= note.end <= 2 and len(note.text) <= 500 for note in notes)
    assert heard({"text": "a\x1b[2J\u202eb\ud800"}) == [Note(0, 2, r"a [2J b\ud800")]


def test_silence_is_not_sent_and_made_up_text_does_not_come_through():
    with Transcriber(WHOLE) as server:
        assert list(opened(server).transcribe(np.zeros(RATE, np.float32))) == []
        assert server.forms == []
    made_up = {"start": 0, "end": 1, "text": "Thanks!", "no_speech_prob": 0.9, "avg_logprob": -2}
    assert heard({"text": "Thanks!", "segments": [made_up]}) == []


FAILURES = {
    "not JSON": ((200, "Hello", {}), "its reply is no JSON"),
    "no object": ((200, "[1]", {}), "its reply is no JSON object"),
    "no text": ({"words": []}, "its reply holds no text"),
    "key": ((401, '{"error": "no"}', {}), f"refuses access .HTTP 401.; set {KEY} to its key"),
    "no model": ((404, '{"error": "no such model"}', {}), "refuses the sound .HTTP 404: no such"),
    "busy": ((429, "slow down", {"Retry-After": "3600"}), "HTTP 429.*asks to wait 3600 s"),
    "broken": ((500, "out of memory", {}), "HTTP 500: out of memory, 2 tries"),
    "no format": ((400, "not a sound", {}), "refuses the sound .HTTP 400: not a sound"),
}


@pytest.mark.parametrize("fault", FAILURES)
def test_a_failing_server_is_an_error_that_says_what_to_do(fault):
    reply, message = FAILURES[fault]
    with pytest.raises(ServedModelError, match=message):
        heard(reply)


def test_a_server_that_asks_to_wait_is_asked_again():
    assert heard((429, "slow", {"Retry-After": "0.01"}), WHOLE) == heard(WHOLE)


def test_a_server_that_is_not_there_or_has_several_models_is_told_at_once():
    with pytest.raises(ServedModelError, match=r"transcription server at http.*cannot be reached"):
        recogniser("openai:http://127.0.0.1:9/v1#whisper-1")
    with pytest.raises(ConfigError, match="give openai:URL#NAME"):
        recogniser("openai:whisper-1")
    with pytest.raises(ConfigError, match="no such"):
        recogniser("openai:http://127.0.0.1:9/v1#w?wait=3")
    with Transcriber(WHOLE, models=("a", "b")) as server:
        with pytest.raises(ServedModelError, match="name one behind a #, of a, b"):
            opened(server, "")
        assert opened(server, "#a")
    with Transcriber(WHOLE, models=None) as server:
        assert opened(server)


def test_the_notes_of_a_file_come_by_its_clock_and_a_failure_tells_from_when_on(tmp_path):
    film = with_sound(tmp_path / "film.mkv", late_s=1.0)
    with Transcriber(WHOLE) as server:
        options = WatchOptions(
            captions=False, speech=SpeechOptions(f"{server.url}#whisper-1{FAST}")
        )
        session = session_of(tiny_model())
        told = list(watch(session, str(film), options))
    wanted = [note.shifted(1.0) for note in heard(WHOLE)]
    assert [event for event in told if isinstance(event, Note)] == wanted
    assert [note for e in session.memory.entries() for note in e.notes] == wanted
    with Transcriber((500, "broken", {})) as server:
        speech = SpeechOptions(f"{server.url}#whisper-1{FAST}")
        options = WatchOptions(captions=False, speech=speech)
        told = list(watch(session_of(tiny_model()), str(film), options))
    (failure,) = [event for event in told if isinstance(event, Notice)]
    assert re.search(r"broken.*; no words from 00:01\.0 on", str(failure)) and failure.is_failure


def test_its_requests_count_against_the_budget_that_models_share():
    spend = Spend(requests=4)
    spend.begin("a model")
    with Transcriber(WHOLE) as server:
        listens = recogniser(f"{server.url}#whisper-1{FAST}", spend=spend)()
        for _ in range(2):  # the list of its models was the second request
            assert list(listens.transcribe(SOUND)) == heard(WHOLE)
        with pytest.raises(ServedModelError, match="the budget of 4 requests an hour is spent"):
            list(listens.transcribe(SOUND))
        with pytest.raises(ServedModelError, match="is spent"):
            spend.begin("a model")
        assert len(server.forms) == 2


LITTLE = ("--max-new-tokens", "1", "--candidates", "1")


@pytest.mark.heavy
def test_the_command_keeps_one_budget_for_captions_and_words(tmp_path, run):
    film = with_sound(tmp_path / "film.mkv")
    with Transcriber(WHOLE) as server, ModelServer(context=9000) as captions:
        speech = ("--speech", f"{server.url}#whisper-1{FAST}")
        code, _, err = run("caption", film, *speech, "--spend", ",1")
        assert code == 1 and "not asked, the budget of 1 requests an hour is spent" in err
        assert not server.forms
        code, _, err = run("caption", film, *speech, *LITTLE, "--spend", ",2")
        assert (code, len(server.forms)) == (0, 1), err
        code, _, err = run("caption", film, *speech, "--spend", ",3", "--caption-with",
                           captions.openai)  # fmt: skip
        assert code == 1 and "the budget of 3 requests an hour is spent" in err
        assert len(captions.requests) + len(server.forms) - 1 <= 1  # two asked what there is


def test_a_process_of_its_own_has_a_budget_of_its_own():
    spend = Spend(requests=1)
    spend.begin("here")
    pickle.loads(pickle.dumps(spend)).begin("there")
