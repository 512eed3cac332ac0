import dataclasses

import numpy as np
import pytest
import torch
from PIL import Image

from streammem.engine.session import Session
from streammem.engine.session_config import SessionConfig
from streammem.errors import StoreError
from streammem.evaluation.pictures import PictureModel
from streammem.models import checkpoint
from streammem.models.backbones.language import GenerationConfig
from streammem.models.protocols import EvidenceItem
from streammem.models.published import find
from streammem.models.videollamb.offline import content, read, starts_of
from streammem.models.videollamb.published import ParentFile, open_model
from streammem.models.videollamb.videollamb import CAPTION_REQUEST
from streammem.perception.frames import SegmentFrames
from tests.command_line import events
from tests.models.videollamb import published, reference
from tests.models.videollamb.published import VOCABULARY, D, M
from tests.sessions import told
from tests.tiny import film

SHORT = GenerationConfig(max_new_tokens=8)
# Scenes of eight frames, as many as attend to each other, so that both ways see the same.
EIGHTS = film(*((colour, 8) for colour in ("red", "blue", "green", "white")))
PER_FRAME = 9
# Rows are stored with 8 bits: a 254th of the greatest of 32 neighbours, through one more layer.
STORED = 8e-2


def session_of(model, memory=None, **options):
    defaults = {"caption": SHORT, "answer": SHORT, "still": 0.0, "retrieved": 99}
    return Session(model, SessionConfig(**defaults | options), memory=memory)


def pixels_of(model, frames):
    return torch.stack([model.perceive(frame.pixels).patches for frame in frames])


def parents_words(model, frames, starts, request):
    """What the parent says after these frames: all of them again, then the last segment."""
    reading = read(model, pixels_of(model, frames), starts)
    prompt = model.prompt(content(model, reading), request)
    return model.language.generate([prompt], SHORT)[0]


# -- streaming is the parent, scene by scene --


@pytest.mark.parametrize("cache", ["memory", "hidden"])
def test_streaming_equals_reading_the_whole_video_at_once(opened, cache):
    model = opened(cache=cache)
    frames = film(("red", 5), ("blue", 8), ("green", 6), ("white", 7))
    session = session_of(model)
    for frame in frames:
        session.push(frame)
    session.flush()
    assert [e.frames for e in session.memory.entries()] == [5, 8, 6, 7]
    reading = read(model, pixels_of(model, frames), [0, 5, 13, 19])
    for number, (shown, recalled) in enumerate(zip(reading.shown, reading.recalled, strict=True)):
        rows = session.tokens(number)
        torch.testing.assert_close(rows[:M], recalled, atol=STORED, rtol=0)
        torch.testing.assert_close(model._shown(rows), shown, atol=STORED, rtol=0)
    torch.testing.assert_close(session.recurrent, reading.recalled[-1], atol=STORED, rtol=0)


def test_the_parents_groups_and_ours_are_one_where_scenes_are_eight_frames(opened):
    frames, starts = pixels_of(opened(), EIGHTS), [0, 8, 16, 24]
    ours, parents = (read(opened(groups=g), frames, starts) for g in ("segment", "stream"))
    for mine, theirs in zip(ours.shown, parents.shown, strict=True):
        torch.testing.assert_close(mine, theirs, atol=1e-4, rtol=0)


def test_captions_are_the_parents_words_where_both_see_the_same_frames(opened):
    model = opened()
    parent = opened(groups="stream", sees="last")
    session = session_of(model)
    said = [e.text for e in told(session, EIGHTS)[1::2]]
    starts = [0, 8, 16, 24]
    assert said == [
        parents_words(parent, EIGHTS[: 8 * n], starts[:n], CAPTION_REQUEST) for n in range(1, 5)
    ]
    assert len(set(said)) == 4


def test_an_answer_that_sees_the_last_segment_is_the_parents(opened, monkeypatch):
    model = opened(sees="last", groups="stream")
    session = session_of(model, now_frames=8)
    for frame in EIGHTS[:-8]:
        session.push(frame)
    session.flush()
    for frame in EIGHTS[-8:]:
        session.push(frame)
    assert len(session.memory) == 3
    words = parents_words(model, EIGHTS, [0, 8, 16, 24], "What is white?")
    seen, plain = [], model.bridge.read
    monkeypatch.setattr(model.bridge, "read", lambda *given: (seen.append(given), plain(*given))[1])
    assert session.ask("What is white?").text == words
    assert torch.equal(seen[-1][1][0], session.recurrent) and seen[-1][2] == 3


def test_retrieval_of_few_segments_costs_the_same_however_many_there_are(opened):
    model = opened()
    session = session_of(model, retrieved=2)
    seen = []
    plain = model.bridge.retrieval.layers[0].register_forward_pre_hook(
        lambda _, arguments: seen.append(arguments[1].shape[1])
    )
    for frame in film(*((c, 6) for c in ("red", "blue", "green", "white", "black", "yellow"))):
        session.push(frame)
    session.flush()
    plain.remove()
    assert seen == [M, 2 * M, 3 * M, 3 * M, 3 * M, 3 * M]


# -- faults and their options --


def test_what_repeats_to_fill_a_group_is_dropped(model, w):
    frames = pixels_of(model, EIGHTS[:5])
    features = model.encode(list(frames))
    places = [0, 0, 1, 1, 2, 2, 3, 4]
    prefix = "model.video_tower.video_tower."
    expected = reference.tower(
        frames[places].numpy(), w, prefix, layers=published.LAYERS, group=published.GROUP
    )
    assert len(features) == 5
    np.testing.assert_allclose(features, expected[[0, 2, 4, 6, 7]], atol=1e-3)


def test_scenes_are_cut_by_the_lent_embeddings_or_by_the_image_towers(opened, keys, w):
    picture = EIGHTS[3].pixels
    lent = opened().perceive(picture)
    np.testing.assert_array_equal(lent.embedding, keys.perceive(picture).embedding)
    own = opened(scene_features="tower").perceive(picture)
    prefix = "model.image_tower.image_tower."
    cls = reference.tower(own.patches[None].numpy(), w, prefix, layers=published.LAYERS)[0, 0]
    np.testing.assert_allclose(own.embedding, cls, atol=1e-3)
    np.testing.assert_array_equal(own.key, lent.key)
    assert opened(scene_features="tower").scenes.floor == 0


def test_equal_pictures_are_seen_equal_every_time(model):
    first, second = (model.perceive(EIGHTS[0].pixels).patches for _ in range(2))
    assert torch.equal(first, second)


def test_a_memory_keeps_as_many_frames_as_it_is_told(opened):
    scene = SegmentFrames(0, list(pixels_of(opened(), EIGHTS[:8])), np.linspace(0, 1, 8).tolist())
    whole = opened().encode_segment(scene, opened().initial_memory(), None)
    few = opened(kept_frames=2).encode_segment(scene, opened().initial_memory(), None)
    assert whole.tokens.shape == (2 * M + 8 * PER_FRAME, D)
    assert few.tokens.shape == (2 * M + 2 * PER_FRAME, D)
    torch.testing.assert_close(few.memory, whole.memory)
    torch.testing.assert_close(few.tokens[: 2 * M + PER_FRAME], whole.tokens[: 2 * M + PER_FRAME])
    one = opened(kept_frames=1).encode_segment(scene, opened().initial_memory(), None)
    assert one.tokens.shape == (2 * M + PER_FRAME, D)


def test_a_prompt_holds_no_more_visual_tokens_than_allowed(opened):
    model = opened(max_visual_tokens=6 * PER_FRAME)
    scene = SegmentFrames(0, list(pixels_of(model, EIGHTS[:8])), np.linspace(0, 1, 8).tolist())
    tokens = model.encode_segment(scene, model.initial_memory(), None).tokens
    for count in (1, 2, 3, 6):
        passages = [EvidenceItem(i, i + 1, tokens, None) for i in range(count)]
        parts = model.answer_prompt(passages, "What?")[2:]
        lengths = [len(part) for part in parts if not isinstance(part, str)]
        assert lengths == [6 // count * PER_FRAME] * count


def test_pruned_and_withheld_tokens_leave_a_prompt_of_text(model):
    passages = [EvidenceItem(0, 1, torch.zeros(0, D), "a red square")]
    prompt = model.answer_prompt(passages, "What?")
    assert "".join(p for p in prompt if isinstance(p, str)).endswith(
        "[00:00.0-00:01.0]a red square\nWhat? ASSISTANT:"
    )
    assert sum(len(p) for p in prompt if not isinstance(p, str)) == 1  # the beginning of sequence


# -- prompts --


def ids(text):
    """What SentencePiece makes of a text with a vocabulary of letters and bytes."""
    found = []
    for letter in "▁" + text.replace(" ", "▁"):
        if letter in VOCABULARY:
            found.append(VOCABULARY[letter])
        else:
            found += [VOCABULARY[f"<0x{byte:02X}>"] for byte in letter.encode()]
    return found


@pytest.mark.parametrize(
    ("style", "person"), [("vicuna_v1", "user"), ("llava_v1", "human")], ids=lambda v: v
)
def test_a_prompt_has_the_published_token_ids(opened, style, person):
    model = opened(prompt=style)
    visual = torch.randn(18, published.L)
    prompt = model.prompt([visual], "Who is it? </s> Ü")
    system = (
        f"A chat between a curious {person} and an artificial intelligence assistant. The "
        f"assistant gives helpful, detailed, and polite answers to the {person}'s questions. "
    )
    before, after = ids(system + "USER: "), ids("\nWho is it? </s> Ü ASSISTANT:")
    table = model.language.model.get_input_embeddings().weight
    embedded = torch.cat([table[[1, *before]], visual, table[after]])
    assert torch.equal(model.language.embed(prompt), embedded)


def test_the_default_prompt_is_what_the_model_was_trained_with(model):
    assert "curious user" in model.prompt([], "Why?")[1]


# -- the variant for needles --


@pytest.fixture(scope="module")
def mem(tensors, tmp_path_factory, keys):
    """Its layout: CLIP towers one wrapper deeper, no attention over time, a position table."""
    changed = {"model.mm_projector.abs_vid_pe.weight": torch.randn(16, D)}
    for name, value in tensors.items():
        if "temporal" not in name and "model.image_tower" not in name:
            wrapped = name.replace(
                "video_tower.video_tower", "video_tower.image_tower.vision_model"
            )
            changed[wrapped] = value
    folder = published.write(tmp_path_factory.mktemp("mem"), changed)
    preset = find("videollamb-mem", checkpoint.CONFIGS)
    options = dataclasses.replace(preset.options, pool=3)
    return open_model("mem", ParentFile(weights=str(folder), options=options), keys)


def test_the_needle_variant_shows_the_memories_of_all_segments(mem, w):
    session = session_of(mem)
    said = told(session, EIGHTS)[1::2]
    assert all(caption.text for caption in said)
    entries = session.memory.entries()
    passages = [EvidenceItem(e.start, e.end, session.tokens(e.segment), None) for e in entries]
    *before, last = mem.answer_prompt(passages, "What?")
    assert "curious human" in before[1] and last == "\nWhat? ASSISTANT:"
    parts = before[2:]
    assert not any(isinstance(part, str) for part in parts)
    reading = read(mem, pixels_of(mem, EIGHTS), [0, 8, 16, 24])
    (expected,) = content(mem, reading)
    assert [len(part) for part in parts] == [M] * 4
    torch.testing.assert_close(torch.cat(parts), expected, atol=STORED, rtol=0)


def test_the_needle_variant_tells_segments_apart_by_their_number(mem):
    frames = pixels_of(mem, EIGHTS[:8])
    memory = mem.initial_memory()
    first, second = (
        mem.encode_segment(SegmentFrames(n, list(frames), []), memory, None) for n in (0, 1)
    )
    assert not torch.allclose(first.memory, second.memory, atol=1e-3)


CLIP = "model.video_tower.video_tower."  # in the reference's tensors, which keep their names


def read_alone(w, pixels):
    """One frame of the variant: read with the first memory, recalled over its own hidden states."""
    plain = {name: value for name, value in w.items() if "temporal" not in name}
    features = reference.tower(
        pixels[None], plain, CLIP, layers=published.LAYERS, activation=reference.quick_gelu
    )
    pooled = reference.pool(features[0, 1:], 3)
    written, hidden = reference.read_segment(pooled, w[f"{reference.PROJECTOR}read_memory_emb"], w)
    return reference.project(reference.retrieve(written, hidden, w), w)


@pytest.mark.parametrize("count", [1, 2, 3])
def test_the_needle_variant_reads_three_frames_or_fewer_each_by_itself(mem, w, count):
    frames = pixels_of(mem, EIGHTS[::8][:count])
    reading = read(mem, frames)
    assert reading.starts == list(range(count))
    (shown,) = content(mem, reading)
    expected = np.concatenate([read_alone(w, frame.numpy()) for frame in frames])
    assert shown.shape == (count * M, published.L)
    np.testing.assert_allclose(shown, expected, atol=2e-3)


def test_the_needle_variant_adds_positions_from_four_frames_on(mem):
    frames = pixels_of(mem, EIGHTS[::8])
    numbers, plain = [], mem.bridge.read
    mem.bridge.read = lambda *given: (numbers.append(given[2]), plain(*given))[1]
    try:
        read(mem, frames[:3])
        read(mem, frames, starts=[0, 1, 2, 3])
    finally:
        del mem.bridge.read
    assert numbers == [None, None, None, 0, 1, 2, 3]


def test_the_needle_variant_sees_a_still_as_its_memory_of_it(mem, w):
    picture = np.random.default_rng(0).integers(0, 256, (70, 90, 3)).astype(np.uint8)
    side = published.SIDE
    shrunk = Image.fromarray(picture).resize((72, side), Image.Resampling.BICUBIC)
    cropped = np.asarray(shrunk)[:, 8 : 8 + side]
    np.testing.assert_allclose(mem.see(picture), read_alone(w, cropped), atol=2e-3)


def test_the_needle_variant_has_eight_segments_at_most(mem, opened):
    noise = np.random.default_rng(3).standard_normal((200, 24))
    assert len(starts_of(mem, noise)) == 8
    assert len(starts_of(opened(cuts="threshold"), noise)) == 16


# -- sessions --


def test_a_memory_goes_on_after_it_was_closed_and_is_refused_to_other_options(opened, tmp_path):
    model, path = opened(), tmp_path / "memory"
    whole = session_of(model)
    texts = [caption.text for caption in told(whole, EIGHTS)[1::2]]
    said = []
    with session_of(model, path) as session:
        said += told(session, EIGHTS[:16])[1::2]
    with session_of(model, path) as session:
        said += told(session, EIGHTS[16:])[1::2]
        assert len(session.memory) == 4
    assert [caption.text for caption in said] == texts
    with pytest.raises(StoreError, match="another model"):
        session_of(opened(cache="hidden"), path)


def test_two_sessions_of_one_model_never_touch(model):
    alone = told(session_of(model), EIGHTS)
    left, right = session_of(model), session_of(model)
    for frame in EIGHTS:
        left.push(frame)
        right.push(dataclasses.replace(frame, pixels=255 - frame.pixels))
    left.flush()
    assert torch.equal(left.recurrent, told_state(model, EIGHTS))
    segments = [e for e in alone if not hasattr(e, "text")]
    scored = left.captioner.caption([left.request(segment) for segment in segments])
    assert [e.text for e in alone[1::2]] == [c.text for c in scored]


def told_state(model, frames):
    session = session_of(model)
    for frame in frames:
        session.push(frame)
    session.flush()
    return session.recurrent


def test_still_pictures_go_through_the_image_tower_padded(model, w):
    picture = np.random.default_rng(0).integers(0, 256, (28, 56, 3)).astype(np.uint8)
    square = np.empty((56, 56, 3), np.uint8)
    square[:] = (122, 116, 104)
    square[14:42] = picture
    prefix = "model.image_tower.image_tower."
    features = reference.tower(square[None], w, prefix, layers=published.LAYERS)
    pooled = reference.pool(features[0, 1:], 3)
    ((expected,), _) = reference.bridge_video([pooled], w)
    np.testing.assert_allclose(model.see(picture), expected, atol=2e-3)
    asked = PictureModel(model)
    own, blank = (asked.caption_pictures([picture], features=f) for f in ("own", "blank"))
    assert own != blank


# -- the command line --


def test_the_command_line_captions_with_a_folder_in_the_published_layout(run, folder, video):
    code, out, err = run(
        "caption", video, "--model", folder, "--format", "jsonl", "--max-new-tokens", "6"
    )
    assert (code, err) == (0, "")
    captions = events(out)
    assert [(c["start"], c["end"]) for c in captions] == [(0.0, 3.0), (3.0, 7.0), (7.0, 10.0)]
    assert len({c["text"] for c in captions}) == 3 and all(c["text"] for c in captions)


@pytest.fixture
def small(folder, tmp_path):
    path = tmp_path / "small.toml"
    path.write_text(f"weights = '{folder}'\n[options]\npool = 3\nkept_frames = 2\n")
    return path


def test_the_command_line_asks_and_finds_in_a_video_and_in_its_memory(run, small, video, tmp_path):
    quick = ("--model", small, "--format", "jsonl", "--max-new-tokens", "4")
    memory = tmp_path / "memory"
    code, out, err = run("ask", video, "What is red?", *quick, "--memory", memory)
    (answer,) = events(out)
    assert (code, err) == (0, "") and answer["text"] and len(answer["evidence"]) == 3
    assert all(item["caption"] for item in answer["evidence"])
    code, out, err = run("ask", memory, "What is red?", *quick)
    (again,) = events(out)
    assert (code, err) == (0, "") and again["text"] and len(again["evidence"]) == 3
    code, out, err = run("find", memory, "something red", *quick)
    assert (code, err) == (0, "") and len(events(out)) == 3


def test_the_command_line_finds_scenes_without_opening_the_language_model(
    run, small, video, monkeypatch
):
    monkeypatch.setattr("streammem.models.videollamb.published._language", None)
    code, out, err = run("scenes", video, "--model", small, "--format", "jsonl")
    assert (code, err) == (0, "")
    assert [s["start"] for s in events(out)] == [0.0, 3.0, 7.0]


def test_a_broken_checkpoint_is_one_line_and_exit_1(run, tensors, video, tmp_path):
    broken = {name: value for name, value in tensors.items() if name != "model.norm.weight"}
    code, out, err = run("caption", video, "--model", published.write(tmp_path / "x", broken))
    assert (code, out) == (1, "")
    assert err.count("\n") == 1 and "1 missing: model.norm.weight" in err
