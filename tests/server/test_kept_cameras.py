"""What the operator's cameras showed before a restart of the server."""

import itertools

import anyio
import pytest

pytest.importorskip("fastapi", reason="needs streammem[serve]")

from streammem.cli import build_parser
from streammem.commands.serving import server_config
from streammem.engine.plans import FollowedPlan
from streammem.engine.session import Session
from streammem.errors import ConfigError, SourceError, StoreError
from streammem.fleet import pool
from streammem.memory.memory import Memory
from streammem.memory.store import Store
from streammem.server.limits import Limits
from streammem.server.sessions import is_camera
from streammem.types import Notice, Segment
from tests.engine.test_watch_camera import Camera
from tests.tiny import film


def camera_after(minutes):
    """Return what opens a camera of three scenes, so many minutes after noon."""

    def opened(source, options):
        camera = Camera(film(("red", 8), ("blue", 8), ("green", 8)))
        camera.wall_zero = 1_777_800_000.0 + 60 * minutes
        return camera

    return opened


async def past_of(serving, monkeypatch, **config):
    """Watch a camera in two runs of a server; give its id, and what the second run has and says."""
    for minutes in (0, 10):
        monkeypatch.setattr("streammem.server.sessions.open_with", camera_after(minutes))
        async with serving(**config) as client:
            await client.sessions.open_own(["rtsp://me:secret@camera/door"])
            ((name, host),) = client.sessions.hosts().items()
            with anyio.fail_after(60):
                while host.state in ("opening", "watching"):
                    await anyio.sleep(0.02)
            events = (await client.get(f"/v1/sessions/{name}/segments")).json()["events"]
            warned = [event.message for event in host.events.kept() if isinstance(event, Notice)]
    return name, [event["start"] for event in events if event["type"] == "segment"], warned


@pytest.mark.anyio
async def test_a_camera_goes_on_from_its_past_where_there_is_a_folder_for_it(
    serving, monkeypatch, tmp_path
):
    name, starts, warned = await past_of(serving, monkeypatch, keep_in=tmp_path)
    assert starts == [0.0, 4.0, 8.0, 600.0, 604.0, 608.0] and warned == []
    assert [path.name for path in tmp_path.iterdir()] == [name]
    _, starts, _ = await past_of(serving, monkeypatch)
    assert starts == [0.0, 4.0, 8.0]


@pytest.mark.parametrize(
    ("source", "is_kept"),
    [
        ("rtsp://camera/1", True),
        ("https://camera/live.m3u8?key=1", True),
        ("webcam:0", True),
        ("https://host/film.MP4?key=1", False),
        ("film.mp4", False),
        ("growing:films", False),
        ("-", False),
    ],
)
def test_only_what_goes_on_has_a_memory_that_goes_on(source, is_kept):
    assert is_camera(source) is is_kept


@pytest.mark.anyio
async def test_a_camera_whose_memory_is_taken_is_watched_and_says_so(
    serving, monkeypatch, tmp_path, model
):
    name, _, _ = await past_of(serving, monkeypatch, keep_in=tmp_path)
    with Session(model, memory=tmp_path / name):
        _, starts, (warned,) = await past_of(serving, monkeypatch, keep_in=tmp_path)
    assert starts == [0.0, 4.0, 8.0] and "kept until the server ends" in warned
    assert str(tmp_path) not in warned


@pytest.mark.anyio
async def test_a_cameras_memory_stays_within_its_bound(serving, monkeypatch, tmp_path):
    monkeypatch.setattr("streammem.server.session_host.PRUNED_EVERY", 1)
    asked = []
    monkeypatch.setattr(Memory, "prune", lambda self, **wanted: asked.append(wanted))
    await past_of(serving, monkeypatch, keep_in=tmp_path, limits=Limits(kept_bytes=12345))
    assert asked == [{"budget_bytes": 12345}] * 6
    asked.clear()
    await past_of(serving, monkeypatch)
    assert asked == []


@pytest.mark.anyio
async def test_a_full_disk_ends_no_camera(serving, monkeypatch, tmp_path):
    monkeypatch.setattr(pool, "BACK_OFF_S", (0.01, 0.02))
    append, num_written, opened = Store.append, itertools.count(), itertools.count()

    def fails_twice(store, *written):
        if next(num_written) in (1, 2):  # the second scene, and the first after it
            raise StoreError(f"{store.path}: the disk is full")
        append(store, *written)

    def camera(source, options):
        number = next(opened)
        if number == 1:
            raise SourceError("no route")
        return camera_after(10 * number)(source, options)

    monkeypatch.setattr(Store, "append", fails_twice)
    monkeypatch.setattr("streammem.server.sessions.open_with", camera)
    async with serving(keep_in=tmp_path) as client:
        await client.sessions.open_own(["rtsp://camera/door"])
        ((name, host),) = client.sessions.hosts().items()
        plan = {"goal": "paint", "steps": ["red", "blue", "green"], "follow": True}
        assert (await client.post(f"/v1/sessions/{name}/plan", json=plan)).status_code < 300
        with anyio.fail_after(60):
            while host.state != "over":
                await anyio.sleep(0.02)
        kept = host.events.kept()
    told = [event.message.partition(";")[0] for event in kept if isinstance(event, Notice)]
    full = f"{name}: the disk is full"
    assert told == [full, "no route", full]
    assert [event.start for event in kept if isinstance(event, Segment)] == [0, 1800, 1804, 1808]
    assert host.goal == "paint" and isinstance(host._followed, FollowedPlan)


@pytest.mark.parametrize(
    ("typed", "kept_in", "line"),
    [
        ("ui rtsp://camera/1", "data/streammem/memories", "2 GiB each at most; --no-memory"),
        ("ui rtsp://camera/1 --memories cameras", "cameras", "--no-memory"),
        ("serve rtsp://camera/1 --memories cameras", "cameras", "--no-memory"),
        ("serve rtsp://camera/1", None, "until the server ends; --memories DIR keeps it"),
        ("ui rtsp://camera/1 --no-memory", None, None),
        ("ui film.mp4", None, None),
        ("ui", None, None),
    ],
)
def test_what_is_kept_is_decided_by_the_command_and_told(
    typed, kept_in, line, tmp_path, monkeypatch, capsys
):
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "cameras").mkdir()
    arguments = build_parser().parse_args(typed.split())
    config = server_config(arguments, by_default=typed.startswith("ui"))
    assert (config.keep_in and tmp_path / config.keep_in) == (kept_in and tmp_path / kept_in)
    # What is kept is listed beside the camera.
    assert config.memories == (config.keep_in or arguments.memories)
    told = capsys.readouterr().err
    assert line in told if line else told == ""
    assert (tmp_path / "data").exists() == (kept_in == "data/streammem/memories")


def test_a_data_folder_that_cannot_be_made_is_an_error_that_helps(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "file"))
    with pytest.raises(ConfigError, match="--memories DIR, or --no-memory"):
        server_config(build_parser().parse_args(["ui", "webcam:0"]), by_default=True)
