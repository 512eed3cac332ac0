import torch
import torch.nn.functional as F

from streammem.training.captions import BranchedPrompt, pack, packed_losses
from tests.tiny import tiny_language


def test_packed_branches_lose_exactly_what_they_lose_alone():
    language = tiny_language()
    prefix, num_visual = [5, 6], 3
    rows = [
        BranchedPrompt([7, 8], [([9], [10, 11, 2]), ([9], [12, 2]), ([13, 14], [15, 16, 17, 2])]),
        BranchedPrompt([], [([20, 21], [22, 2])]),
    ]
    visual = torch.randn(2, num_visual, language.width, generator=torch.Generator().manual_seed(0))
    packed = packed_losses(language, pack(rows, prefix=prefix, num_visual=num_visual), visual)

    losses = []
    for row, tokens in zip(rows, visual, strict=True):
        for asked, said in row.branches:
            embed = language.model.get_input_embeddings()
            after = torch.tensor([*row.shared, *asked, *said])
            inputs = torch.cat([embed(torch.tensor(prefix)), tokens, embed(after)])[None]
            logits = language.model(inputs_embeds=inputs).logits[0]
            predicted = logits[-len(said) - 1 : -1]
            losses += F.cross_entropy(predicted, torch.tensor(said), reduction="none").tolist()

    # float32, another order of the same sums
    assert abs(packed.mean().item() - sum(losses) / len(losses)) < 1e-5


def test_a_branch_is_blind_to_its_siblings():
    packed = pack([BranchedPrompt([7], [([9], [10, 2]), ([9], [12, 2])])], prefix=[5], num_visual=1)
    # columns: 5, visual, 7 | 9, 10 | 9, 12
    allowed = packed.mask[0, 0]
    assert allowed[6].tolist() == [True, True, True, False, False, True, True]
    assert packed.positions[0].tolist() == [0, 1, 2, 3, 4, 3, 4]
