"""Opens a model in a fresh process while eight threads ask it for the first time.

    python -m tests.models.opened_by_many streammem-tiny 3    its real weights
    python -m tests.models.opened_by_many FOLDER 3            tiny ones: FOLDER/llama, FOLDER/bert

The number decides who comes first. It prints what each thread was given, as one line of JSON.

Each test that starts fresh processes starts NUM_PROCESSES of them in `make test-all`, so that
each thread asks each question first; STREAMMEM_FRESH_PROCESSES=50 starts more.
"""

import faulthandler
import json
import os
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import torch

from streammem.models.backbones.language import CausalLanguageModel, GenerationConfig
from streammem.models.backbones.text import SentenceEncoder
from streammem.models.checkpoint import PRESETS, load_checkpoint
from streammem.models.once import opening
from streammem.models.protocols import EvidenceItem
from streammem.models.tiny.model import VideoModel
from tests.tiny import tiny_model

FEW = GenerationConfig(max_new_tokens=4)
BEAMS = GenerationConfig(max_new_tokens=4, num_beams=2)
NUM_THREADS = 8
NUM_PROCESSES = int(os.environ.get("STREAMMEM_FRESH_PROCESSES", NUM_THREADS))


def fresh_processes(num_quick: int) -> list[object]:
    """Return the numbers of a test's processes; those after the first few are heavy."""
    heavy = range(num_quick, NUM_PROCESSES)
    return [*range(num_quick), *(pytest.param(n, marks=pytest.mark.heavy) for n in heavy)]


def open_model(name: str) -> VideoModel:
    """Open a preset, or the tiny model with parts that are read from files like a preset's."""
    if name in PRESETS:
        model = load_checkpoint(name)
        assert isinstance(model, VideoModel)
        return model
    with opening("tiny"):  # its weights are drawn from the process's one generator
        return tiny_model(
            open_language=lambda: CausalLanguageModel.open(Path(name) / "llama"),
            open_sentences=lambda: SentenceEncoder(Path(name) / "bert"),
        )


def asked(model: VideoModel) -> list[object]:
    """Return what a model is asked for: each is a call that opens a part, if none has."""
    tokens = torch.linspace(-1, 1, model.token_shape[0] * model.token_shape[1])
    item = EvidenceItem(0, 1, tokens.view(model.token_shape))

    def captions():
        prompts = [model.caption_prompt(item)]
        (replies,) = (each for each in model.replies(prompts, FEW, 8) if each)
        return [reply.text for reply in replies]

    return [
        lambda: model.language.speaks_together,
        lambda: [round(float(key), 4) for key in model.sentence_keys(["a dog", "on grass"]).flat],
        lambda: model.language.generate([["Hi"]], BEAMS),
        captions,
        lambda: model.fingerprint,
        # What a user types is no special token, whatever is tokenised beside it.
        lambda: "".join(model.stream(model.language.chat(["<|im_end|> Why?"]), FEW)),
        lambda: [state.spans for state in model.sentences.token_states(["a dog runs", "the cat"])],
        lambda: model.perceive(np.zeros((48, 64, 3), np.uint8)).key.round(4).tolist(),
    ]


def main(name: str, number: int) -> None:
    """Open and ask; print what was given."""
    together, given = threading.Barrier(NUM_THREADS), [None] * NUM_THREADS
    models: list[VideoModel] = []

    def run(place: int) -> None:
        together.wait(60)
        if place < 2:  # two models at a time; the first is the one that is asked
            models.append(open_model(name))
        together.wait(60)
        try:
            given[place] = asked(models[0])[(place + number) % NUM_THREADS]()
        except Exception as error:  # noqa: BLE001, printed below
            given[place] = repr(error)

    threads = [threading.Thread(target=run, args=(place,)) for place in range(NUM_THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    ordered = [given[(place - number) % NUM_THREADS] for place in range(NUM_THREADS)]
    sys.stdout.write(json.dumps(ordered) + "\n")


if __name__ == "__main__":
    faulthandler.enable()
    main(sys.argv[1], int(sys.argv[2]))
