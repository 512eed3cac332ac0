from dataclasses import replace

import pytest
import torch

from streammem.captioning.captioner import Captioner, CaptionRequest
from streammem.models.backbones.language import Beginnings, GrowingReply
from streammem.models.caption_scores import Reranker
from streammem.models.protocols import EvidenceItem, NamingEncoder
from streammem.models.tiny.words import NamesInText, WordsOfTokens, caption_beginnings
from streammem.types import Segment
from tests.tiny import tiny_model

NO_SINGULAR = ("scissors", "jeans", "shorts", "glasses", "sunglasses", "binoculars")


@pytest.mark.parametrize(
    ("names", "texts"),
    [
        ([], ()),
        (["person", "snow"], ()),  # captions name these by themselves
        (["person", "elephant"], ("An elephant",)),
        (["skis", "person", "cup", "pan"], ("Skis", "A cup", "Skis and a cup")),
        (["pants", "sun glasses"], ("Pants", "Sun glasses", "Pants and sun glasses")),
        (["glass", "pair of jeans"], ("A glass", "A pair of jeans", "A glass and a pair of jeans")),
        *(([name], (name.capitalize(),)) for name in NO_SINGULAR),
    ],
)
def test_captions_begin_with_the_two_likeliest_things_and_with_both(names, texts):
    assert caption_beginnings(names).texts == texts


def test_prompts_of_captions_hold_beginnings_unless_the_instruction_is_the_users():
    model, tokens = tiny_model(), torch.zeros(4, 32)
    words = WordsOfTokens(4, 32, ("cup", "pan"), hidden=3).eval()
    torch.nn.init.zeros_(words.up.weight)
    words.up.bias.data = torch.tensor([9.0, -9.0])

    def begun(model, *instruction):
        prompt = model.caption_prompt(EvidenceItem(0, 1, tokens), *instruction)
        return [text for part in prompt if isinstance(part, Beginnings) for text in part.texts]

    named = replace(model, words=words)
    assert begun(named) == ["A cup"]
    assert begun(named, "What is it?") == begun(model) == []


def test_a_text_names_a_thing_by_its_kinds_and_by_every_word_of_its_name():
    names = ("person", "bird", "tennis racket", "racket", "car", "TV")
    words = WordsOfTokens(4, 32, names, hidden=3)

    def named(text):
        return {names[i] for i in words.named_in(text)}

    assert named("Two men watch a duck.") == {"person", "bird"}
    assert named("A tennis ball and a racket.") >= {"racket", "tennis racket"}
    assert named("A broken racket.") == {"racket"}
    assert named("A tennis ball.") == named("") == set()
    assert named("A taxi and a tv.") == {"car", "TV"}


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("A hot dog on a table.", {"hot dog", "table"}),
        ("A hot dog and a dog.", {"hot dog", "dog"}),
        ("A dog beside two hot dogs.", {"hot dog", "dog"}),
        ("A teddy bear.", {"teddy bear"}),
        ("A tennis racket and a ball.", {"tennis racket", "tennis ball"}),
        ("A teddy, a bear.", {"teddy bear", "bear"}),  # which do not stand together
        ("A bottle of soap.", {"bottle of soap"}),
        ("A bottle of soap dispenser.", {"bottle of soap dispenser"}),  # the longest
        ("A cell phone.", {"phone"}),
        ("A telephone.", {"telephone"}),
        ("A phone and a telephone.", {"phone", "telephone"}),
        ("A cellphone.", {"phone", "telephone"}),
    ],
)
def test_words_of_a_longer_name_are_no_other_name_unless_they_stand_by_themselves(text, named):
    names_in = NamesInText(
        ("dog", "hot dog", "table", "bear", "teddy bear", "bottle", "soap", "bottle of soap",
         "bottle of soap dispenser", "phone", "telephone", "tennis ball", "tennis racket")
    )  # fmt: skip
    assert {names_in.names[i] for i in names_in(text)} == named


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("A man with short hair.", set()),
        ("A man in shorts.", {"shorts"}),
        ("A panting dog.", set()),
        ("A boy in pants.", {"pants"}),
        ("A pair of scissors.", {"scissors", "scissor"}),
    ],
)
def test_shorts_and_pants_are_no_other_word(text, named):
    names = ("shorts", "pants", "scissors", "scissor")
    names_in = NamesInText(names)
    assert {names[i] for i in names_in(text)} == named


def test_naming_adds_what_is_there_and_takes_off_what_is_not():
    words = WordsOfTokens(4, 32, ("cup", "pan", "dog"), hidden=3).eval()
    torch.nn.init.zeros_(words.up.weight)
    words.up.bias.data = torch.tensor([9.0, -9.0, 0.0])
    model, tokens = replace(tiny_model(), words=words), torch.zeros(4, 32)
    texts = ["A cup.", "A cup, and a cup.", "A pan.", "A cup and a pan.", "A dog.", "Snow.", ""]
    told = model.naming(tokens, texts)
    assert told == pytest.approx([1, 1, -1, 0, 0, 0, 0], abs=1e-3)
    assert isinstance(model, NamingEncoder)
    assert not tiny_model().naming(tokens, texts).any(), "who knows no names tells nothing"


def test_captions_of_a_segment_are_chosen_by_what_its_tokens_show():
    words = WordsOfTokens(4, 32, ("man", "dog"), hidden=3).eval()
    torch.nn.init.zeros_(words.up.weight)
    reranker = Reranker((0.0, 0.0), 2, naming=1.0)
    model = replace(tiny_model(), words=words, reranker=reranker)
    drawn = [GrowingReply(text, [1], [-1.0]) for text in ("A man.", "A dog.")]
    keys = model.sentence_keys(["A man."])
    for odds, text in (((9.0, -9.0), "A man."), ((-9.0, 9.0), "A dog.")):
        words.up.bias.data = torch.tensor(odds)
        request = CaptionRequest(Segment(0, 0.0, 1.0, None, None), keys, torch.zeros(4, 32))
        assert Captioner(model).choose(request, tuple(drawn))[0].text == text
        unseen = request._replace(tokens=None)
        assert Captioner(model).choose(unseen, tuple(drawn))[0].text == "A man."
