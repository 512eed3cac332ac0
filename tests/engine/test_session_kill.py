"""kill -9 on the whole engine: perception, captions, store."""

import os
import random
import signal
from itertools import cycle, islice

import pytest
import torch

from streammem.engine.session import Session
from streammem.engine.session_config import SessionConfig
from streammem.memory.store import Store
from streammem.memory.upkeep import verify
from tests.sessions import SHORT
from tests.tiny import film, tiny_model

CONFIG = SessionConfig(answer=SHORT, caption=SHORT)
SCENES = (("red", 5), ("blue", 4), ("green", 6), ("white", 4))


def watch(model, path, acknowledge):
    """Perceive and caption without end; a kill falls into perception, words or the disk."""
    torch.set_num_threads(1)  # a forked process has no other thread
    with Session(model, CONFIG, path) as session:
        start = session.memory.entries()[-1].end if session.next_segment else 0.0
        for frame in film(*islice(cycle(SCENES), 2_000), start=start):
            for segment in session.push(frame):
                os.write(acknowledge, b"%d\n" % segment.id)
                session.caption(segment)


def kill_while_watching(model, path, rng):
    """Kill at a random moment; return the last segment that was acknowledged."""
    reading, writing = os.pipe()
    engine = os.fork()
    if not engine:
        try:
            watch(model, path, writing)
        finally:
            os._exit(1)
    os.close(writing)
    with os.fdopen(reading) as told:
        acknowledged = [told.readline() for _ in range(rng.randrange(2, 8))]
        for _ in range(rng.randrange(100_000)):  # somewhere inside the next one
            pass
        os.kill(engine, signal.SIGKILL)
        acknowledged += told.readlines()
    assert os.waitstatus_to_exitcode(os.waitpid(engine, 0)[1]) == -signal.SIGKILL
    return int(acknowledged[-1])


@pytest.mark.skipif(not hasattr(os, "fork"), reason="kills a forked process")
@pytest.mark.parametrize("kills", [1, pytest.param(5, marks=pytest.mark.heavy)])
def test_a_killed_engine_loses_no_acknowledged_segment_and_goes_on(tmp_path, kills):
    path, rng, model = tmp_path / "a.mem", random.Random(kills), tiny_model()
    for _ in range(kills):
        acknowledged = kill_while_watching(model, path, rng)
        with Store.open(path, model.fingerprint) as memory:
            assert verify(memory) == ()
            entries = list(memory.load_entries())
        assert entries[-1].last >= acknowledged
        assert [e.segment for e in entries[1:]] == [e.last + 1 for e in entries[:-1]]
    with Session(model, CONFIG, path) as session:
        before = session.next_segment
        assert before == entries[-1].last + 1
        for frame in film(("red", 5), ("blue", 5), start=entries[-1].end):
            session.push(frame)
        session.flush()
        assert session.next_segment > before
        assert session.ask("what was red?").evidence
    with Store.open(path, model.fingerprint, "r") as memory:
        assert verify(memory) == ()
