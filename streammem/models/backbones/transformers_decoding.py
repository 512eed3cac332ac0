"""Decoding through transformers: beams, and models that ``decoding.py`` does not compute itself.

It embeds no prompts and knows no text (see ``language.py``).
"""

from collections.abc import Collection, Sequence
from copy import copy, deepcopy
from inspect import signature
from itertools import takewhile
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor

from streammem.models.backbones.sampling import GenerationConfig


class TransformersRun:
    """One prompt that any causal model of transformers continues.

    Attributes:
        logits: [1, V] of the next token.
    """

    def __init__(self, model: Any, prompt: Tensor) -> None:
        self._model, self._past = model, None
        # Transformers 5.24 calls it so; before 5.40 the other name is taken, too.
        named = "cache" in signature(model.forward).parameters
        self._past_name = "cache" if named else "past_key_values"
        self.logits = torch.empty(0)
        self._read(inputs_embeds=prompt[None])

    def feed(self, tokens: Tensor) -> None:
        """Continue by a token, [1]."""
        self._read(input_ids=tokens[None])

    def fork(self) -> Self:
        """Return a run that goes on from here by itself; the prompt is not read again."""
        forked = copy(self)
        forked._past = deepcopy(self._past)
        return forked

    def _read(self, **fed: Tensor) -> None:
        past = {self._past_name: self._past}
        out = self._model(**fed, **past, use_cache=True, logits_to_keep=1)
        self._past = out["cache"] if "cache" in out else out["past_key_values"]
        self.logits = out.logits[:, -1]


def search(
    model: Any, rows: Sequence[Tensor], config: GenerationConfig, stop_ids: Collection[int]
) -> list[list[int]]:
    """Decode a batch greedily or by beams.

    Args:
        model: a transformers causal language model.
        rows: [T_i, D] embeddings, at least one row.
        config: its temperature is 0.
        stop_ids: tokens that end a reply.

    Returns:
        A reply's tokens a row, without the one that ended it.
    """
    longest = max(len(row) for row in rows)
    # Left padding: every row's next token then stands in the same column.
    batch = torch.stack([F.pad(row, (0, 0, longest - len(row), 0)) for row in rows])
    mask = torch.zeros(batch.shape[:2], dtype=torch.long, device=batch.device)
    for i, row in enumerate(rows):
        mask[i, longest - len(row) :] = 1
    ids = model.generate(
        inputs_embeds=batch,
        attention_mask=mask,
        max_new_tokens=config.max_new_tokens,
        num_beams=config.num_beams,
        length_penalty=config.length_penalty,
        repetition_penalty=config.repetition_penalty,
        do_sample=False,
        eos_token_id=sorted(stop_ids) or None,
        pad_token_id=min(stop_ids, default=0),
    )
    return [list(takewhile(lambda i: i not in stop_ids, row)) for row in ids.tolist()]
