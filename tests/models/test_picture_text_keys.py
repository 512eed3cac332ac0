"""Keys from a CLIP or SigLIP: what is found, what a memory remembers of them, and made anew."""

import json
import subprocess
import sys
import types

import numpy as np
import pytest
import torch
from transformers import CLIPConfig, CLIPModel, SiglipConfig, SiglipModel

from streammem.engine.session import Session
from streammem.errors import BackboneError, ConfigError, StoreError
from streammem.memory import upkeep
from streammem.memory.reindex import reindex
from streammem.memory.retrieval import fit_null
from streammem.memory.store import Store
from streammem.models.picture_text_keys import SENTENCES, generated_pictures, open_keys, with_keys
from streammem.types import TimeSpan
from tests.models.vlm import tiny_checkpoints as tiny
from tests.sessions import told
from tests.tiny import film, moving_square, tiny_model

FILM = (("red", 6), ("blue", 6), ("green", 6))
WORDS = ("red", "blue", "green")


def save(kind, folder, seed=0):
    """A CLIP or SigLIP of two layers whose halves agree on what red, blue and green are."""
    folder.mkdir()
    torch.manual_seed(seed)
    tokenizer = tiny._tokenizer(folder, [], "", bos="<s>", eos="</s>")
    text = {**tiny.VISION, "vocab_size": len(tokenizer), "max_position_embeddings": 64}
    vision = {**tiny.VISION, "image_size": 28, "patch_size": 14}
    if kind == "clip":
        ends = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
        config = CLIPConfig(text_config={**text, **ends}, vision_config=vision, projection_dim=24)
        model = CLIPModel(config)
    else:
        config = SiglipConfig(text_config={**text, "projection_size": 32}, vision_config=vision)
        model = SiglipModel(config)
    model.save_pretrained(folder)
    options = {"size": {"height": 28, "width": 28}, "image_mean": tiny.HALF, "image_std": tiny.HALF}
    name = "CLIPImageProcessor" if kind == "clip" else "SiglipImageProcessor"
    tiny._image_processor(folder, name, do_center_crop=False, **options)
    return folder


@pytest.fixture(autouse=True)
def own_home(tmp_path, monkeypatch):
    monkeypatch.setenv("STREAMMEM_HOME", str(tmp_path / "home"))


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("keys")
    return {kind: save(kind, root / f"tiny-{kind}") for kind in ("clip", "siglip")}


class Colours:
    """Keys that know red, blue and green alone, in the place of a trained model."""

    label = "colours@1:4"
    null = fit_null([(n, np.linspace(0, n / 9, 9), np.zeros((9, 3))) for n in (2, 8)])
    background = torch.eye(4)[:3]
    asked = 0

    def picture_keys(self, pictures):
        Colours.asked += len(pictures)
        means = [np.median(picture.reshape(-1, 3), axis=0) for picture in pictures]
        order = [0, 2, 1]
        return np.stack([self._unit([mean[i] for i in order]) for mean in means])

    def sentence_keys(self, sentences):
        return np.stack([self._unit([word in text for word in WORDS]) for text in sentences])

    def _unit(self, values):
        known = [*map(float, values)]
        key = np.array([*known, float(not any(known))], np.float32)
        return key / np.linalg.norm(key)


# -- the models --


@pytest.mark.parametrize("kind", ["clip", "siglip"])
def test_keys_are_unit_rows_that_do_not_depend_on_what_stands_beside_them(folders, kind):
    keys = open_keys(f"hf:{folders[kind]}")
    pictures = [moving_square(colour, 3) for colour in ("red", "blue", "green")]
    found = keys.picture_keys(pictures)
    sentences = keys.sentence_keys(["a dog", "a much longer sentence about a cat", "x " * 200])
    width = (24 if kind == "clip" else 32) + 1
    for rows in (found, sentences, keys.background.numpy()):
        assert rows.shape[1] == width and rows.dtype == np.float32
        np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1, atol=1e-5)
        assert not rows[:, -1].any()
    np.testing.assert_allclose(found[1], keys.picture_keys(pictures[1:2])[0], atol=1e-5)
    np.testing.assert_allclose(sentences[0], keys.sentence_keys(["a dog"])[0], atol=1e-5)
    assert np.abs(found[0] - found[1]).max() > 1e-3
    assert keys.sentence_keys([]).shape == (0, width)


def test_pictures_and_sentences_lie_around_one_middle(folders):
    keys = open_keys(str(folders["clip"]))
    for rows in (keys.background.numpy(), keys.sentence_keys(SENTENCES)):
        assert np.abs(rows.mean(0)).max() < 0.3


def test_the_calibration_is_measured_once_and_the_same_again(folders, tmp_path):
    first = open_keys(str(folders["clip"]))
    (kept,) = (tmp_path / "home" / "keys").iterdir()
    again = open_keys(str(folders["clip"]))
    assert first.label == again.label and first.null == again.null
    assert torch.equal(first.background, again.background)
    kept.write_bytes(b"cut off")
    assert open_keys(str(folders["clip"])).null == first.null


def test_the_label_changes_with_the_weights_and_with_the_photos(folders, tmp_path):
    other = save("clip", tmp_path / "tiny-clip", seed=1)
    photos = tmp_path / "photos"
    photos.mkdir()
    from PIL import Image

    for number, picture in enumerate(generated_pictures(40)):
        Image.fromarray(picture[:, ::-1]).save(photos / f"{number:02d}.png")
    labels = [
        open_keys(str(folders["clip"])).label,
        open_keys(str(other)).label,
        open_keys(str(folders["clip"]), options={"pictures": str(photos)}).label,
    ]
    assert len(set(labels)) == 3
    assert all(label.startswith("tiny-clip@") and label.endswith(":25") for label in labels)
    with pytest.raises(ConfigError, match="a hundred"):
        open_keys(str(folders["clip"]), options={"pictures": str(tmp_path / "home")})


def test_what_maps_no_pictures_is_refused(tmp_path):
    with pytest.raises(BackboneError, match="models pull"):
        open_keys("hf:someone/no-such-keys")
    with pytest.raises(BackboneError, match=r"not a usable model of keys|maps no pictures"):
        open_keys(str(tiny.save("llava", tmp_path / "llava")))
    with pytest.raises(ConfigError, match="no such option"):
        open_keys(str(tmp_path / "llava"), options={"no": 1})


def test_a_model_of_sentence_transformers_is_opened_by_it(tmp_path, monkeypatch):
    folder = tmp_path / "multimodal"
    folder.mkdir()
    (folder / "modules.json").write_text("[]")
    monkeypatch.setitem(sys.modules, "sentence_transformers", None)
    with pytest.raises(BackboneError, match="pip install 'sentence-transformers"):
        open_keys(str(folder))
    seen = []

    class SentenceTransformer:
        def __init__(self, path, device, local_files_only):
            assert local_files_only and path == str(folder)

        def encode(self, items, convert_to_numpy):
            seen.extend(items)
            sizes = [len(str(item)) if isinstance(item, str) else item.width for item in items]
            return np.array([[1.0, size % 7, size % 5] for size in sizes])

    stub = types.ModuleType("sentence_transformers")
    stub.SentenceTransformer = SentenceTransformer
    monkeypatch.setitem(sys.modules, "sentence_transformers", stub)
    keys = open_keys(str(folder))
    assert keys.sentence_keys(["a", "bb"]).shape == (2, 4)
    assert keys.picture_keys([moving_square("red", 1)]).shape == (1, 4)


# -- in a session --


@pytest.mark.parametrize("kind", ["clip", "siglip"])
def test_a_session_finds_and_answers_by_them(folders, kind, tmp_path):
    base = tiny_model()
    model = with_keys(base, open_keys(str(folders[kind])))
    assert model.fingerprint.startswith(base.fingerprint + f"+tiny-{kind}@")
    with Session(model, memory=tmp_path / "m") as session:
        told(session, film(*FILM))
        moments = session.find("a red square", 3)
        assert len(moments) == 3 and session.ask("When is there a dog?").text
    with Session(model, memory=tmp_path / "m", read_only=True) as session:
        assert session.find("a red square", 3) == moments


def test_the_keys_decide_what_is_found():
    with Session(with_keys(tiny_model(), Colours())) as session:
        told(session, film(*FILM))
        found = [session.find(f"something {word}", 1)[0].segment for word in WORDS]
    assert found == [0, 1, 2]


def test_a_memory_of_other_keys_is_refused_with_what_helps(tmp_path):
    base = tiny_model()
    with Session(base, memory=tmp_path / "own") as session:
        told(session, film(*FILM))
    with pytest.raises(StoreError, match=r"leave --keys out.*memory reindex"):
        Session(with_keys(base, Colours()), memory=tmp_path / "own")
    with Session(with_keys(base, Colours()), memory=tmp_path / "other") as session:
        told(session, film(*FILM))
    with pytest.raises(StoreError, match=r"keys of colours@1:4: give the same --keys"):
        Session(base, memory=tmp_path / "other")
    with pytest.raises(StoreError, match="made by another model"):
        Session(tiny_model(seed=1), memory=tmp_path / "own")


# -- made anew --


@pytest.fixture
def trips(tmp_path):
    """A memory of six scenes with the model's own keys."""
    with Session(tiny_model(), memory=tmp_path / "trips", source="a.mp4") as session:
        told(session, film(*FILM, *FILM))
    return tmp_path / "trips"


def renew(path, keys=None, stop_after=None):
    model = with_keys(tiny_model(), keys or Colours())
    made = 0

    def picture_key(picture):
        nonlocal made
        if made == stop_after:
            raise KeyboardInterrupt
        made += 1
        return model.perceiver.perceive(picture).key

    with Store.open(path, None, "rw") as store:
        width = model.text_encoder.background.shape[1]
        return reindex(
            store, model.fingerprint, width, picture_key, model.text_encoder.sentence_keys
        )


def test_new_keys_find_by_the_new_model_and_all_else_stays(trips):
    with Session(tiny_model(), memory=trips) as session:
        before = session.memory.entries()
        tokens = [session.tokens(entry.segment) for entry in before]
    assert renew(trips).rows == 6
    with Session(with_keys(tiny_model(), Colours()), memory=trips) as session:
        after = session.memory.entries()
        assert {m.segment for m in session.find("something blue", 2)} == {1, 4}
        told(session, film(("green", 4), start=100.0))  # and it goes on
        assert all(map(torch.equal, tokens, map(session.tokens, range(6))))
    for old, new in zip(before, after, strict=True):
        assert (old.segment, old.start, old.end, old.caption) == (
            new.segment, new.start, new.end, new.caption,
        )  # fmt: skip
        assert len(new.caption_keys) == len(old.caption_keys)
    with Store.open(trips, None, "r") as store:
        assert upkeep.verify(store) == ()
        assert not store.database.query("SELECT 1 FROM sqlite_master WHERE name = 'rekeyed'")


def test_own_keys_come_back(trips):
    renew(trips)
    model = tiny_model()
    with Store.open(trips, None, "rw") as store:
        key = lambda picture: model.perceive(picture).key  # noqa: E731
        reindex(store, model.fingerprint, 16, key, model.sentence_keys)
    with Session(tiny_model(), memory=trips) as session:
        assert len(session.find("red", 6)) == 6


def test_what_was_made_before_a_stop_is_kept_and_old_keys_hold_meanwhile(trips, monkeypatch):
    monkeypatch.setattr("streammem.memory.reindex.AT_ONCE", 2)
    with pytest.raises(KeyboardInterrupt):
        renew(trips, stop_after=5)
    with Session(tiny_model(), memory=trips) as session:  # the old keys are in force
        assert len(session.find("red", 6)) == 6
        told(session, film(("blue", 4), start=100.0))  # and new rows come
    done = renew(trips)
    assert (done.rows, done.resumed) == (7, 4)
    assert renew(trips).rows == 7
    with Session(with_keys(tiny_model(), Colours()), memory=trips) as session:
        assert {m.segment for m in session.find("something blue", 3)} == {1, 4, 6}


def test_keys_for_another_model_begin_anew(trips, monkeypatch):
    monkeypatch.setattr("streammem.memory.reindex.AT_ONCE", 2)
    with pytest.raises(KeyboardInterrupt):
        renew(trips, stop_after=5)
    other = Colours()
    other.label = "other@2:4"
    assert renew(trips, other).resumed == 0


def test_rows_that_lost_their_picture_are_found_by_their_words(trips):
    with Store.open(trips, None, "rw") as store:
        store.database.query("BEGIN")
        from streammem.memory.database import SELECT, UPDATE, with_columns

        (row,) = store.database.query(f"{SELECT} WHERE segment = 1")
        bare = with_columns(row, keyframe=None, keyframe_bytes=0)
        store.database.query(UPDATE, *bare, 1)
        store.database.query("COMMIT")
    assert renew(trips).without_picture == 1
    with Session(with_keys(tiny_model(), Colours()), memory=trips) as session:
        assert session.find("something blue", 1)[0].segment == 4
        assert session.memory.get(1).visual_keys[0, -1] == 1


def test_what_is_forgotten_leaves_no_new_keys_behind(trips, monkeypatch):
    monkeypatch.setattr("streammem.memory.reindex.AT_ONCE", 2)
    with pytest.raises(KeyboardInterrupt):
        renew(trips, stop_after=5)
    with Store.open(trips, None, "rw") as store:
        upkeep.forget(store, TimeSpan(0, 4))
        left = store.database.query("SELECT segment FROM rekeyed")
        assert left and min(left)[0] > 0
    assert renew(trips).rows < 6


def test_keys_do_not_make_another_models_tokens_readable(trips):
    model = with_keys(tiny_model(seed=1), Colours())
    with Store.open(trips, None, "rw") as store, pytest.raises(StoreError, match="another model"):
        reindex(store, model.fingerprint, 4, model.perceiver.perceive, Colours().sentence_keys)


def test_a_crash_between_the_keys_and_the_header_file_loses_neither(trips, monkeypatch):
    def crash(*_):
        raise KeyboardInterrupt

    old = (trips / "memory.json").read_text()
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr("streammem.memory.reindex.write_header", crash)
        renew(trips)
    assert (trips / "memory.json").read_text() == old
    model = with_keys(tiny_model(), Colours())
    with Session(model, memory=trips, read_only=True) as session:
        assert {m.segment for m in session.find("something blue", 2)} == {1, 4}
    with pytest.raises(StoreError, match="give the same --keys"):
        Session(tiny_model(), memory=trips)
    with Session(model, memory=trips) as session:
        assert session.memory.get(0).visual_keys.shape[1] == 4
    assert json.loads((trips / "memory.json").read_text())["key_dim"] == 4


KILLED = """
import os, sys
import streammem.memory.reindex as reindex
from tests.models.test_picture_text_keys import Colours, renew
reindex.AT_ONCE = 2
keep = reindex._keep
def kept(store, pending):
    keep(store, pending)
    kept.times += 1
    if kept.times == 2:
        os.kill(os.getpid(), 9)
kept.times = 0
reindex._keep = kept
renew(sys.argv[1])
"""


@pytest.mark.heavy
def test_a_kill_loses_neither_the_old_keys_nor_the_new(trips):
    killed = subprocess.run(
        [sys.executable, "-c", KILLED, str(trips)], timeout=120, capture_output=True, check=False
    )
    assert killed.returncode == -9, killed.stderr
    with Session(tiny_model(), memory=trips) as session:
        assert len(session.find("red", 6)) == 6
    Colours.asked = 0
    done = renew(trips)
    assert (done.rows, done.resumed, Colours.asked) == (6, 4, 2)


# -- the command line --


def test_the_commands_take_keys(run, folders, trips, video, tmp_path):
    keys = f"hf:{folders['clip']}"
    code, out, err = run("find", trips, "a red square", "--keys", keys)
    assert (code, out) == (1, "") and "memory reindex" in err
    code, out, err = run("memory", "reindex", trips, "--keys", keys)
    assert code == 0 and "6 rows with new keys" in err
    code, out, err = run("find", trips, "a red square", "--keys", keys)
    assert code == 0 and out
    code, out, err = run("memory", "info", trips)
    assert "+tiny-clip@" in out
    code, out, err = run("find", trips, "a red square")
    assert code == 1 and "give the same --keys" in err
    code, out, err = run("caption", video, "--keys", "openai:x#y")
    assert code == 2 and "--keys" in err
    code, out, err = run("memory", "reindex", trips, "--keys", "own")
    assert code == 0
    assert run("find", trips, "a red square")[0] == 0
