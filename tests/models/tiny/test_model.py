from dataclasses import replace

import pytest
import torch

from streammem.captioning.captioner import Captioner, CaptionRequest
from streammem.models.backbones.language import GrowingReply
from streammem.models.caption_scores import Reranker
from streammem.models.tiny.words import WordsOfTokens
from streammem.types import Segment
from tests.tiny import tiny_model


def words_of(biases):
    """Name things by their biases alone, whatever the tokens."""
    words = WordsOfTokens(4, 32, ("man", "dog"), hidden=3).eval()
    torch.nn.init.zeros_(words.up.weight)
    words.up.bias.data = torch.tensor(biases)
    return words


def chosen(model, tokens):
    drawn = tuple(GrowingReply(text, [1], [-1.0]) for text in ("A man.", "A dog."))
    keys = model.sentence_keys(["A man."])
    request = CaptionRequest(Segment(0, 0.0, 1.0, None, None), keys, tokens)
    return Captioner(model).choose(request, drawn)[0].text


def test_what_names_things_works_beside_an_encoder_on_another_device():
    model = replace(
        tiny_model(), words=words_of([-9.0, 9.0]), reranker=Reranker((0.0, 0.0), 2, naming=1.0)
    )
    tokens = torch.zeros(4, 32)
    # Of the meta device no value can be read, so that it stands for any other.
    beside = replace(model, center=model.center.to("meta"))
    assert beside.likely_words(tokens, 1) == ["dog"]
    assert beside.naming(tokens, ["A dog."]) == pytest.approx([1], abs=1e-3)
    assert chosen(beside, tokens) == "A dog."


def test_what_names_things_takes_tokens_to_its_own_device():
    words = words_of([-9.0, 9.0]).to("meta")
    assert words(torch.zeros(1, 4, 32)).device.type == "meta"


def test_of_pruned_tokens_no_names_are_told():
    model = replace(
        tiny_model(), words=words_of([-9.0, 9.0]), reranker=Reranker((0.0, 0.0), 2, naming=1.0)
    )
    pruned = torch.zeros(0, 32)
    assert model.likely_words(pruned, 2) == []
    assert model.naming(pruned, ["A man.", "A dog.", ""]).tolist() == [0, 0, 0]
    assert chosen(model, pruned) == "A man."
