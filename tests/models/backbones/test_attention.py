"""Laws of the attention that is taken on CUDA, on computers that have none."""

import pytest
import torch

from streammem.models.backbones import transformers_files
from streammem.models.backbones.transformers_files import attention_choice


@pytest.mark.parametrize(
    ("installed", "capability", "dtype", "taken"),
    [
        ({2, 3, 4}, (9, 0), torch.bfloat16, "flash_attention_3"),
        ({2, 3, 4}, (10, 0), torch.bfloat16, "flash_attention_2"),
        ({2, 3, 4}, (8, 0), "auto", "flash_attention_2"),
        ({4}, (9, 0), torch.float16, "flash_attention_4"),
        ({4}, (8, 6), torch.bfloat16, "sdpa"),  # needs a newer GPU
        ({3}, (10, 0), torch.bfloat16, "sdpa"),  # for Hopper alone
        ({2}, (7, 5), torch.bfloat16, "sdpa"),  # needs a newer GPU
        (set(), (9, 0), torch.bfloat16, "sdpa"),
        ({2, 3, 4}, (9, 0), torch.float32, "sdpa"),
    ],
)
def test_the_flash_attention_that_is_installed_and_fits_is_taken(
    monkeypatch, installed, capability, dtype, taken
):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: capability)
    monkeypatch.setattr(transformers_files, "has_flash_attention", installed.__contains__)
    name, reason = attention_choice(dtype)
    assert name == taken and reason


def test_without_cuda_it_is_sdpa_though_flash_attention_were_installed(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(transformers_files, "has_flash_attention", lambda number: True)
    assert attention_choice() == ("sdpa", "there is no CUDA device")


def test_transformers_is_asked_by_names_that_it_has():
    """None is installed where there is no CUDA; an unknown number is none too."""
    for number in (2, 3, 4):
        assert hasattr(transformers_files.transformers.utils, f"is_flash_attn_{number}_available")
    if not torch.cuda.is_available():
        assert not any(map(transformers_files.has_flash_attention, (2, 3, 4, 99)))
