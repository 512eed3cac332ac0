"""Prompts, exact to the token: ids by the stated rules for random inputs."""

import hashlib
import random

import pytest
import torch

from streammem.errors import BackboneError, CheckpointError, ConfigError
from streammem.models.video_llama.prompts import (
    OWN_SOUND,
    SLOT,
    Slot,
    picture_prompt,
    published_text,
    sound_prompt,
    text_prompt,
    time_line,
    video_prompt,
)
from tests.models.videollamb.published import VOCABULARY

WORDS = ("Who", "is", "it?", "###", "</s>", "<Video>", SLOT, "Ü", "猫", "[INST]", "a\nb", "  ", "7")


def ids(text):
    """What SentencePiece makes of a text with a vocabulary of letters and bytes."""
    found = []
    for letter in "▁" + text.replace(" ", "▁"):
        if letter in VOCABULARY:
            found.append(VOCABULARY[letter])
        else:
            found += [VOCABULARY[f"<0x{byte:02X}>"] for byte in letter.encode()]
    return found


def expected(chat, system, user, slots):
    """Ids by the parent's rules: one template, cut at the placeholders, each piece by itself."""
    if chat == "vicuna":
        text = system + "###Human: " + user + "###Assistant:"
    else:
        text = "[INST] <<SYS>>\n" + system + "\n<</SYS>>\n\n" + user + " [/INST]"
    pieces, rest = [], text
    for slot in slots:
        before, _, rest = rest.partition(SLOT)
        pieces += [ids(before), slot]
    return [[1], *pieces, ids(rest)]


def read(model, parts):
    """Ids of a prompt's texts and the slots between, the beginning first."""
    tokenizer = model.language.tokenizer
    return [[1]] + [
        part
        if isinstance(part, Slot)
        else tokenizer(part, add_special_tokens=False, split_special_tokens=True).input_ids
        for part in parts
    ]


def stated(times):
    """The parent's time line, from frames and a frame rate."""
    listed = ", ".join(str(round(frame / fps, 1)) for frame, fps in times)
    return f"The video contains {len(times)} frames sampled at {listed} seconds. "


@pytest.mark.parametrize("chat", ["llama2", "vicuna"])
def test_prompt_ids_of_random_inputs_are_those_of_the_rules(model, chat):
    draw = random.Random(7)
    for _ in range(100):
        question = " ".join(draw.choices(WORDS, k=draw.randint(0, 6)))
        system = " ".join(draw.choices(WORDS[:5], k=draw.randint(0, 3)))
        fps = draw.choice([1, 23.976, 25, 30])
        frames = sorted(draw.sample(range(9000), draw.randint(1, 8)))
        line = stated([(frame, fps) for frame in frames])
        assert time_line([frame / fps for frame in frames]) == line
        kind = draw.choice(["video", "picture", "sound", "text"])
        if kind == "video":
            parts = video_prompt(chat, system, [line], question)
            user, slots = f"<Video>{SLOT}</Video> {line} {question}", [Slot.PICTURES]
        elif kind == "picture":
            parts = picture_prompt(chat, system, question)
            user, slots = f"<Image>{SLOT}</Image>  {question}", [Slot.PICTURES]
        elif kind == "sound":
            framing = f"Listen {SLOT}. And look <Video>{SLOT}</Video>   then answer"
            parts = sound_prompt(chat, framing, [""], question)
            user, slots = f"{framing} {question}", [Slot.SOUND, Slot.PICTURES]
            system = ""
        else:
            parts, user, slots = text_prompt(chat, system, question), question, []
        if SLOT not in system:
            assert read(model, parts) == expected(chat, system, user, slots), (kind, question)


def test_a_placeholder_in_a_question_stays_text():
    parts = video_prompt("vicuna", "", [""], f"What is {SLOT}?")
    assert parts == ["###Human: <Video>", Slot.PICTURES, f"</Video>  What is {SLOT}?###Assistant:"]
    parts = sound_prompt("vicuna", OWN_SOUND, [""], SLOT)
    assert [part for part in parts if isinstance(part, Slot)] == [Slot.SOUND, Slot.PICTURES]


def test_several_videos_stand_one_after_another():
    parts = video_prompt("vicuna", "", ["one ", "two "], "Why?")
    assert parts == [
        "###Human: <Video>", Slot.PICTURES, "</Video> one <Video>", Slot.PICTURES,
        "</Video> two  Why?###Assistant:",
    ]  # fmt: skip


def test_the_models_prompt_begins_with_one_beginning_of_sequence(model):
    (begin, *rest) = model.caption_prompt(evidence(model))
    assert torch.equal(begin, model.language.model.get_input_embeddings().weight[[1]])
    assert [type(part) for part in rest] == [str, torch.Tensor, str]


def evidence(model):
    from streammem.models.protocols import EvidenceItem
    from streammem.models.video_llama.video_llama import Kept

    frames = torch.randn(2, 4, model.token_shape[1])
    return EvidenceItem(3.0, 5.0, model.pack(Kept(frames, [0.0, 1.2], None)))


# -- wordings of the parent --


def written(folder, text):
    """A file in which the wording is a string constant, and what finds it."""
    path = folder / "demo_video.py"
    path.write_text(f"import nothing_that_exists\nstate.system =  {text!r}\nx = 'other'\n")
    return "demo_video.py", hashlib.sha256(text.encode()).hexdigest()[:16]


def test_a_wording_is_found_in_the_parents_file_by_its_checksum(tmp_path):
    where = written(tmp_path, "You see    the\nvideo.")
    assert published_text(tmp_path, where) == "You see    the\nvideo."


def test_another_version_or_none_of_the_file_is_named(tmp_path, opened):
    where = written(tmp_path, "You see the video.")
    with pytest.raises(CheckpointError, match=r"demo_video\.py: does not hold the published"):
        published_text(tmp_path, (where[0], "0" * 16))
    with pytest.raises(BackboneError, match="clone of DAMO-NLP-SG/Video-LLaMA"):
        published_text(tmp_path / "gone", where)
    (tmp_path / "demo_video.py").write_text("def (")
    with pytest.raises(CheckpointError, match="no Python source"):
        published_text(tmp_path, where)
    with pytest.raises(ConfigError, match="give parent"):
        opened(words="published")
