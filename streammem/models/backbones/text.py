"""The frozen sentence encoder behind text keys (all-MiniLM-L6-v2, 384-d)."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from torch import Tensor
from transformers import AutoTokenizer, BertModel

from streammem.errors import BackboneError
from streammem.models.once import PartLock, opening

TEXT_DIM = 384
MAX_TOKENS = 128
BATCH = 64


class TokenStates(NamedTuple):
    """What the encoder makes of a sentence's words.

    Attributes:
        states: [T, 384] float32, one row a word piece, without the signs that frame a sentence.
        spans: [begin, end) of each piece in the sentence, in characters.
    """

    states: Tensor
    spans: tuple[tuple[int, int], ...]


class SentenceEncoder:
    """Sentences to unit vectors: the mean of BERT's last hidden states over real tokens.

    Args:
        folder: config.json, model.safetensors and tokenizer of the encoder.

    Raises:
        BackboneError: missing or unreadable files.
    """

    def __init__(self, folder: str | Path) -> None:
        try:
            with opening(f"{folder}"):
                self._tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
                model = BertModel.from_pretrained(
                    folder, local_files_only=True, use_safetensors=True, add_pooling_layer=False
                )
        except (OSError, ValueError, RuntimeError, ImportError, SafetensorError) as error:
            reason = str(error).strip().partition("\n")[0]
            raise BackboneError(f"{folder}: not a usable sentence encoder ({reason})") from error
        self._model = model.eval().requires_grad_(False)
        self._lock = PartLock()  # a fast tokenizer holds its padding and truncation as state

    def encode(self, sentences: Sequence[str]) -> Tensor:
        """Encode sentences.

        Returns:
            [N, 384] float32, unit rows, in the order given.
        """
        rows = torch.empty(len(sentences), TEXT_DIM, dtype=torch.float32)
        for chosen, hidden, batch in self._batches(sentences):
            mask = batch["attention_mask"][..., None]
            rows[chosen] = F.normalize((hidden * mask).sum(1) / mask.sum(1), dim=-1)
        return rows

    def token_states(self, sentences: Sequence[str]) -> list[TokenStates]:
        """Encode the word pieces of sentences, in the order given; none of an empty sentence."""
        found: dict[int, TokenStates] = {}
        for chosen, hidden, batch in self._batches(sentences):
            for row, index in enumerate(chosen):
                spans = batch["offset_mapping"][row]
                real = spans[:, 1] > spans[:, 0]
                places = tuple((int(begin), int(end)) for begin, end in spans[real])
                found[index] = TokenStates(hidden[row][real], places)
        return [found[index] for index in range(len(sentences))]

    def _batches(self, sentences: Sequence[str]) -> Iterator[tuple[list[int], Tensor, Any]]:
        """Yield places of sentences, their last hidden states [B, T, E], and what was read."""
        # Similar lengths share a batch, so that little of it is padding.
        order = sorted(range(len(sentences)), key=lambda i: len(sentences[i]))
        for begin in range(0, len(order), BATCH):
            chosen = order[begin : begin + BATCH]
            with self._lock:
                batch = self._tokenizer(
                    [sentences[i] for i in chosen],
                    padding=True,
                    truncation=True,
                    max_length=MAX_TOKENS,
                    return_offsets_mapping=True,
                    return_tensors="pt",
                )
            read = {key: value for key, value in batch.items() if key != "offset_mapping"}
            with torch.inference_mode():
                yield chosen, self._model(**read).last_hidden_state, batch
