"""Fixtures of the command line's tests: a small video, and a runner with a tiny model."""

import signal

import pytest
from hypothesis import HealthCheck, settings

from streammem.cli import main
from streammem.models import checkpoint
from tests.command_line import record
from tests.tiny import tiny_model

# The same examples every time; that a busy machine is slow is no fault of what is tested.
settings.register_profile(
    "steady", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("steady")
# A shell's background processes ignore the interrupt, and all that they start; tests send it.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="module")
def video(tmp_path_factory):
    return str(record(tmp_path_factory.mktemp("videos") / "three scenes.mp4"))


@pytest.fixture(scope="module")
def model():
    return tiny_model()


@pytest.fixture
def tiny(model, monkeypatch):
    """Every model is the tiny one."""
    monkeypatch.setattr(checkpoint, "load_checkpoint", lambda name="", *, device="cpu": model)


@pytest.fixture
def run(tiny, capsys):
    """Run a command; give its exit code, its stdout and its stderr."""

    def run(*arguments):
        code = main([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        assert "Traceback" not in captured.err
        return code, captured.out, captured.err

    return run


@pytest.fixture
def memories(model, tmp_path):
    """A folder with a memory of five scenes, ``trips``."""
    from streammem.engine.session import Session
    from streammem.engine.session_config import SessionConfig
    from tests.sessions import FILM, SHORT, told
    from tests.tiny import film

    folder = tmp_path / "memories"
    folder.mkdir()
    options = SessionConfig(answer=SHORT, caption=SHORT)
    with Session(model, options, memory=folder / "trips", source="a.mp4") as session:
        told(session, film(*FILM))
    return folder
