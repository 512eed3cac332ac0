"""The frozen sentence encoder behind text keys (all-MiniLM-L6-v2, 384-d)."""

from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from torch import Tensor
from transformers import AutoTokenizer, BertModel

from streammem.errors import BackboneError

TEXT_DIM = 384
MAX_TOKENS = 128
BATCH = 64


class SentenceEncoder:
    """Sentences to unit vectors: the mean of BERT's last hidden states over real tokens.

    Args:
        folder: config.json, model.safetensors and tokenizer of the encoder.

    Raises:
        BackboneError: missing or unreadable files.
    """

    def __init__(self, folder: str | Path) -> None:
        try:
            self._tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
            model = BertModel.from_pretrained(
                folder, local_files_only=True, use_safetensors=True, add_pooling_layer=False
            )
        except (OSError, ValueError, RuntimeError, ImportError, SafetensorError) as error:
            reason = str(error).strip().partition("\n")[0]
            raise BackboneError(f"{folder}: not a usable sentence encoder ({reason})") from error
        self._model = model.eval().requires_grad_(False)

    @torch.inference_mode()
    def encode(self, sentences: Sequence[str]) -> Tensor:
        """Encode sentences.

        Returns:
            [N, 384] float32, unit rows, in the order given.
        """
        # Similar lengths share a batch, so that little of it is padding.
        order = sorted(range(len(sentences)), key=lambda i: len(sentences[i]))
        rows = torch.empty(len(sentences), TEXT_DIM)
        for begin in range(0, len(order), BATCH):
            chosen = order[begin : begin + BATCH]
            batch = self._tokenizer(
                [sentences[i] for i in chosen],
                padding=True,
                truncation=True,
                max_length=MAX_TOKENS,
                return_tensors="pt",
            )
            hidden = self._model(**batch).last_hidden_state
            mask = batch["attention_mask"][..., None]
            rows[chosen] = F.normalize((hidden * mask).sum(1) / mask.sum(1), dim=-1)
        return rows
