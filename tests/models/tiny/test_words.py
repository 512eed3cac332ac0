from dataclasses import replace

import pytest
import torch

from streammem.models.backbones.language import Beginnings
from streammem.models.protocols import EvidenceItem
from streammem.models.tiny.words import WordsOfTokens, caption_beginnings
from tests.tiny import tiny_model


@pytest.mark.parametrize(
    ("names", "texts"),
    [
        ([], ()),
        (["person", "snow"], ()),  # captions name these by themselves
        (["person", "elephant"], ("An elephant",)),
        (["skis", "person", "cup", "pan"], ("Skis", "A cup", "Skis and a cup")),
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
