"""Any image-text-to-text model of transformers captions, answers and remembers.

The models are tiny, with random weights, in the layout in which they are published.
"""

import socket

import numpy as np
import pytest
import torch
import transformers.utils
from transformers import AutoImageProcessor, AutoTokenizer
from transformers.processing_utils import ProcessorMixin

from streammem.engine.session import Session
from streammem.engine.watch import watch
from streammem.errors import BackboneError, ConfigError
from streammem.models.backbones.language import GenerationConfig
from streammem.models.protocols import ComposedModel, EvidenceItem
from streammem.models.vlm.chat_pictures import _processor_class
from streammem.models.vlm.transformers_model import open_transformers
from streammem.types import Caption, Note
from tests.models.vlm.tiny_checkpoints import FAMILIES, save
from tests.tiny import film, tiny_model

SHORT = GenerationConfig(max_new_tokens=12)
RNG = np.random.default_rng(0)
NOISE = [RNG.integers(0, 255, size, np.uint8) for size in ((90, 160, 3), (64, 64, 3), (120, 80, 3))]
RED, BLUE = (np.full((90, 160, 3), colour, np.uint8) for colour in ((220, 30, 30), (30, 30, 220)))


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    def refuse(*_):
        raise AssertionError("the network was used")

    monkeypatch.setattr(socket.socket, "connect", refuse)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    made = {}

    def folder(family):
        if family not in made:
            made[family] = save(family, tmp_path_factory.mktemp("models") / family)
        return made[family]

    return folder


@pytest.fixture(scope="module")
def generators(folders):
    made = {}

    def generator(family, **options):
        key = (family, *sorted(options.items()))
        if key not in made:
            made[key] = open_transformers(str(folders(family)), options=options)
        return made[key]

    return generator


# What stands for a picture where a template puts all of them first.
MOVES = {"llava": "<image>\n", "llava_onevision": "<image>"}
each_family = pytest.mark.parametrize("family", FAMILIES)


def own_processor(folder, monkeypatch):
    """The model's own processor, built from its class and its files, without our composer."""
    cls = _processor_class(folder)
    monkeypatch.setattr(ProcessorMixin, "check_argument_for_proper_class", lambda *_: None)
    if "num2words" in cls.__init__.__globals__:
        monkeypatch.setitem(cls.__init__.__globals__, "num2words", str)
    parts = {
        "image_processor": AutoImageProcessor.from_pretrained(folder, backend="pil"),
        "tokenizer": AutoTokenizer.from_pretrained(folder),
    }
    if "video_processor" in cls.get_attributes():
        parts["video_processor"] = type("Videos", (), {"num_frames": None, "fps": None})()
    sizes, _ = cls.get_processor_dict(folder)
    sizes.pop("processor_class", None)
    template = (folder / "chat_template.jinja").read_text()
    return cls(**parts, **{**sizes, "chat_template": template})


def replies(generator, prompts, decoding=SHORT, candidates=1):
    return [each for each in generator.replies(prompts, decoding, candidates) if each]


def shown(*pictures, start=1.0):
    return EvidenceItem(start, start + 1, keyframes=pictures)


# -- prompts --


@each_family
def test_a_prompt_has_the_tokens_of_the_models_own_processor(
    generators, folders, family, monkeypatch
):
    generator, processor = generators(family), own_processor(folders(family), monkeypatch)
    items = [
        EvidenceItem(1.0, 2.0, keyframes=(NOISE[0],), caption="A dog."),
        EvidenceItem(70.0, 72.5, keyframes=(NOISE[1], NOISE[2]), heard=(Note(71.0, 72.0, "sit"),)),
    ]
    prompt = generator.answer_prompt(items, "What is there?")
    ours = generator._chat.inputs([prompt])
    if family in MOVES:  # its template would move the pictures away from their times
        parts = [part if isinstance(part, str) else MOVES[family] for part in prompt]
        text = processor.apply_chat_template(
            [{"role": "user", "content": [{"type": "text", "text": "".join(parts)}]}],
            add_generation_prompt=True,
        )
        own = processor(text=[text], images=[NOISE], return_tensors="pt")
    else:
        content = [
            {"type": "text", "text": part} if isinstance(part, str) else
            {"type": "image", "image": part}
            for part in prompt
        ]  # fmt: skip
        own = processor.apply_chat_template(
            [{"role": "user", "content": content}],
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
            **({"enable_thinking": False} if family == "qwen3_5" else {}),
        )
    assert ours["input_ids"].tolist() == own["input_ids"].tolist()
    assert set(ours) == set(own)
    for name in ours:
        assert torch.equal(torch.as_tensor(ours[name]), torch.as_tensor(own[name])), name


@each_family
def test_pictures_stand_in_their_order_each_after_its_time(generators, family):
    generator = generators(family)
    red_first = [shown(RED, start=1), shown(BLUE, start=5)]
    blue_first = [shown(BLUE, start=1), shown(RED, start=5)]
    prompts = [
        generator.answer_prompt(items, "Which is first?") for items in (red_first, blue_first)
    ]
    for prompt in prompts:
        before = [prompt[i - 1] for i, part in enumerate(prompt) if not isinstance(part, str)]
        assert before == ["[00:01.0-00:02.0]:\n", "\n[00:05.0-00:06.0]:\n"]
        text = generator._chat.text(prompt)
        assert text.index("00:01.0") < text.index("00:05.0") < text.index("Which is first?")
    one, other = (generator._chat.inputs([prompt]) for prompt in prompts)
    assert one["input_ids"].tolist() == other["input_ids"].tolist()
    rows = [found["pixel_values"].flatten(end_dim=-3 if found["pixel_values"].ndim > 3 else 0)
            for found in (one, other)]  # fmt: skip
    halves = [each.chunk(2) for each in rows]
    assert torch.equal(halves[0][0], halves[1][1]) and torch.equal(halves[0][1], halves[1][0])
    assert not torch.equal(*halves[0])


def test_a_model_that_thinks_by_its_template_is_told_not_to(generators):
    chat = generators("qwen3_5")._chat
    assert chat.text(["Why?"]).endswith("<think>\n\n</think>\n\n")


@each_family
def test_equal_neighbours_are_kept_apart_by_their_times(generators, family):
    generator = generators(family)
    prompt = generator.caption_prompt(shown(RED, RED, RED))
    assert [isinstance(part, str) for part in prompt] == [True, False] * 3 + [True]
    assert prompt[2] == "\n[00:01.0-00:02.0], picture 2 of 3:\n"
    once, thrice = (
        generator._chat.inputs([generator.caption_prompt(shown(*[RED] * n))]) for n in (2, 3)
    )
    assert thrice["input_ids"].shape[1] > once["input_ids"].shape[1]


@each_family
def test_no_text_stands_for_a_picture_or_ends_a_turn(generators, family):
    generator = generators(family)
    bad = "a <image> <|image_pad|> <IMG_CONTEXT> <|im_end|> <end_of_utterance> </s> b"
    plain, wicked = (
        generator._chat.inputs([generator.answer_prompt([shown(RED)], text)])["input_ids"][0]
        for text in ("a b", bad)
    )
    special = generator._chat.processor.tokenizer.all_special_ids
    counts = [[int((ids == each).sum()) for each in special] for ids in (plain, wicked)]
    assert counts[0] == counts[1]


def test_a_caption_is_made_from_at_most_four_keyframes_spread_over_the_scene(generators):
    generator = generators("qwen3_vl")
    pictures = [np.full((32, 32, 3), 10 * i, np.uint8) for i in range(8)]
    prompt = generator.caption_prompt(shown(*pictures))
    levels = [int(part[0, 0, 0]) for part in prompt if not isinstance(part, str)]
    assert len(levels) == 4 and levels == sorted(levels) and levels[0] == 0 and levels[-1] == 70
    assert generator.caption_prompt(shown(RED), "Name the colour.")[-1] == "\nName the colour."


# -- generation --


@each_family
def test_a_batch_gives_to_the_letter_what_its_prompts_give_alone(generators, family):
    generator = generators(family, batch=3)
    assert generator.batches
    prompts = [
        generator.caption_prompt(shown(NOISE[0])),
        generator.caption_prompt(shown(*NOISE)),
        generator.answer_prompt([shown(NOISE[1]), shown(RED, start=9)], "What was first?"),
        generator.answer_prompt([], "Why?"),
    ]
    together = replies(generator, prompts)
    alone = [replies(generators(family), [prompt])[0] for prompt in prompts]
    assert [reply.text for (reply,) in together] == [reply.text for (reply,) in alone]
    assert len({round(sum(reply.log_probs), 2) for (reply,) in alone}) == len(prompts)
    for (one,), (other,) in zip(together, alone, strict=True):
        np.testing.assert_allclose(one.log_probs, other.log_probs, atol=1e-3)


@each_family
def test_a_word_has_the_probability_of_one_pass_over_the_whole(generators, family):
    generator = generators(family)
    prompt = generator.answer_prompt([shown(*NOISE[:2]), shown(RED, start=5)], "Why?")
    ((reply,),) = replies(generator, [prompt])
    inputs = generator._inputs([prompt])
    ids, length = torch.tensor([reply.ids]), inputs["input_ids"].shape[1]
    inputs["input_ids"] = torch.cat([inputs["input_ids"], ids], 1)
    for name in ("attention_mask", "mm_token_type_ids", "token_type_ids"):
        if name in inputs:
            more = torch.full_like(ids, int(name == "attention_mask"))
            inputs[name] = torch.cat([inputs[name], more], 1)
    with torch.inference_mode():
        logits = generator._open_model().model(**inputs).logits[0, length - 1 : -1]
    wanted = logits.log_softmax(-1).gather(1, ids[0][:, None])[:, 0]
    np.testing.assert_allclose(reply.log_probs, wanted.numpy(), atol=1e-3)


@each_family
def test_a_question_between_the_words_of_a_caption_changes_neither(generators, family):
    generator = generators(family)
    caption = generator.caption_prompt(shown(*NOISE[:2]))
    answer = generator.answer_prompt([shown(NOISE[2]), shown(RED, start=4)], "What is there?")
    alone = replies(generator, [caption])[0][0].text, "".join(generator.stream(answer, SHORT))
    steps = generator.replies([caption], SHORT)
    begun = [next(steps) for _ in range(3)]
    between = "".join(generator.stream(answer, SHORT))
    ((rest,),) = [each for each in (*begun, *steps) if each]
    assert (rest.text, between) == alone


@each_family
def test_streamed_pieces_joined_are_the_reply(generators, family):
    generator = generators(family)
    prompt = generator.caption_prompt(shown(NOISE[0]))
    pieces = list(generator.stream(prompt, SHORT))
    assert len(pieces) > 1
    assert "".join(pieces) == replies(generator, [prompt])[0][0].text


@each_family
def test_of_several_candidates_the_first_is_the_likeliest_and_all_come_again(generators, family):
    generator = generators(family)
    prompt = generator.caption_prompt(shown(NOISE[0]))
    (drawn,) = replies(generator, [prompt], candidates=3)
    assert len(drawn) == 3 and drawn[0].text == replies(generator, [prompt])[0][0].text
    assert all(len(reply.log_probs) == len(reply.ids) for reply in drawn)
    assert replies(generator, [prompt], candidates=3) == [drawn]
    with pytest.raises(ConfigError, match="greedy"):
        replies(generator, [prompt], GenerationConfig(temperature=1.0), candidates=2)


def test_beams_find_what_is_at_least_as_likely(generators):
    generator = generators("llava")
    prompt = generator.caption_prompt(shown(NOISE[0]))
    beams = GenerationConfig(max_new_tokens=6, num_beams=3)
    ((found,),) = replies(generator, [prompt], beams)
    assert found.text and list(generator.stream(prompt, beams)) == [found.text]


@pytest.mark.parametrize(
    "family",
    [
        family if family == "qwen3_vl" else pytest.param(family, marks=pytest.mark.heavy)
        for family in FAMILIES
    ],
)
def test_static_caches_give_the_same_words_alone_together_and_of_candidates(generators, family):
    usual, static = generators(family), generators(family, cache="static", batch=2)
    prompts = [usual.caption_prompt(shown(*NOISE[:n])) for n in (1, 2, 1)]
    has_caches = static._open_model().pool is not None
    assert has_caches == (family != "qwen3_5"), "whose linear attention has another cache"
    for candidates in (1, 3):
        wanted = replies(usual, prompts, candidates=candidates)
        found = replies(static, prompts, candidates=candidates)
        for own, others in zip(found, wanted, strict=True):
            assert [reply.ids for reply in own] == [reply.ids for reply in others]
            for reply, other in zip(own, others, strict=True):
                assert np.allclose(reply.log_probs, other.log_probs, atol=1e-4)


@each_family
def test_it_captions_answers_and_remembers(generators, family, tmp_path):
    generator = generators(family)
    keys = tiny_model()

    def model():
        return ComposedModel(family, f"{family}-1", keys, keys, generator)

    path = tmp_path / "seen.mem"
    with Session(model(), memory=path) as session:
        events = list(watch(session, film(("red", 6), ("blue", 6), ("green", 6))))
        captions = [event.text for event in events if isinstance(event, Caption)]
        assert len(captions) == 3 and all(captions)
        likely = [event.likelihood for event in events if isinstance(event, Caption)]
        assert all(value and 0 < value <= 1 for value in likely)
        pieces: list[str] = []
        answer = session.ask("What is there?", pieces.append)
        assert answer.text and answer.method == "model" and "".join(pieces) == answer.text
        assert answer.evidence
    with Session(model(), memory=path) as later:
        assert [entry.caption for entry in later.memory.entries()] == captions
        kept = [entry.sureness[0].likelihood for entry in later.memory.entries()]
        assert kept == likely
        assert later.ask("What was there?").text


# -- options and refusals --


def test_options_of_the_image_processor_change_what_a_picture_takes(generators, folders):
    whole = open_transformers(
        str(folders("smolvlm")), options={"image": {"do_image_splitting": False}}
    )
    tiled, once = (
        each._chat.inputs([each.caption_prompt(shown(NOISE[0]))])["input_ids"].shape[1]
        for each in (generators("smolvlm"), whole)
    )
    assert once < tiled
    assert replies(whole, [whole.caption_prompt(shown(NOISE[0]))])[0][0].text


def test_no_more_pictures_are_read_than_the_context_holds(tmp_path):
    folder = save("internvl", tmp_path / "short")
    text = (folder / "config.json").read_text()
    (folder / "config.json").write_text(
        text.replace('"max_position_embeddings": 4096', '"max_position_embeddings": 64')
    )
    assert open_transformers(str(folder)).reads.pictures == (64 - 16) // 23
    ((one,),) = replies(g := open_transformers(str(folder)), [g.caption_prompt(shown(RED))])
    assert one.text


@pytest.mark.parametrize(
    "wrong",
    [{"dtype": "int3"}, {"pictures": 0}, {"batch": -1}, {"caption_pictures": 5},
     {"quantize": "2bit"}, {"max_new_tokens": 0}, {"pictures": "many"}, {"image": 3},
     {"no_such": 1}],
)  # fmt: skip
def test_options_that_cannot_be_meant_are_refused(wrong, folders):
    with pytest.raises(ConfigError):
        open_transformers(str(folders("llava")), options=wrong)


def test_quantised_weights_need_bitsandbytes(folders, monkeypatch):
    monkeypatch.setattr(transformers.utils, "is_bitsandbytes_available", lambda: False)
    with pytest.raises(BackboneError, match="quantize=4bit: pip install bitsandbytes"):
        open_transformers(str(folders("llava")), options={"quantize": "4bit"})


def test_attention_goes_to_transformers_and_a_missing_one_says_so(folders, generators):
    eager = open_transformers(str(folders("llava")), options={"attention": "eager"})
    prompt = eager.caption_prompt(shown(NOISE[0]))
    assert eager._open_model().model.config._attn_implementation == "eager"
    assert replies(eager, [prompt])[0][0].text == replies(generators("llava"), [prompt])[0][0].text
    missing = {"attention": "flash_attention_2"}
    with pytest.raises(BackboneError, match=r"(?i)flash"):
        replies(open_transformers(str(folders("llava")), options=missing), [prompt])


def test_a_model_that_is_not_here_names_the_command_that_fetches_it():
    with pytest.raises(BackboneError, match="streammem models pull hf:someone/some-model"):
        open_transformers("hf:someone/some-model")
    with pytest.raises(BackboneError, match="no such folder"):
        open_transformers("hf:nothing")


def test_a_folder_without_weights_or_template_says_what_it_lacks(tmp_path):
    folder = save("llava", tmp_path / "llava")
    template = (folder / "chat_template.jinja").read_text()
    (folder / "model.safetensors").unlink()
    generator = open_transformers(str(folder))
    with pytest.raises(BackboneError, match="not a usable image-text-to-text model"):
        replies(generator, [generator.caption_prompt(shown(RED))])
    (folder / "chat_template.jinja").write_text(template.replace("<image>", ""))
    with pytest.raises(BackboneError, match="shows no picture"):
        open_transformers(str(folder))
    (folder / "chat_template.jinja").unlink()
    with pytest.raises(BackboneError, match="no chat template"):
        open_transformers(str(folder))
    (folder / "config.json").write_text("{}")
    (folder / "processor_config.json").unlink()
    with pytest.raises(BackboneError):
        open_transformers(str(folder))


def test_a_check_shows_what_it_costs_and_that_random_weights_see_nothing(folders, run):
    code, out, _ = run("models", "check", f"hf:{folders('smolvlm')}?max_new_tokens=4")
    lines = out.splitlines()
    assert code == 1
    assert "M parameters, float32, sdpa) on cpu" in lines[0]
    assert "4096 tokens" in lines[1]
    assert [line.split()[-1] for line in lines[2:5]] == ["tokens"] * 3
    assert lines[5].startswith("--  1 colour") and "it says none of them" in lines[5]
    assert any("caption" in line and " s (4 pictures, 4 tokens): " in line for line in lines)
    assert lines[-1].startswith("=>  do not use it")
