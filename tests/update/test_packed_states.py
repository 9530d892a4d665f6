"""Models that carry state along the row score a packed row as they score each text by itself."""

from typing import Any

import pytest
import torch
from support.models import HYBRIDS, block, decoder

from grpo_hf.update.packed_attention import read_layouts
from grpo_hf.update.packed_states import read_layouts_of_states
from grpo_hf.update.packing import PackedGroups

ROWS = {
    "ragged groups": (
        [[5, 6, 7, 8, 9, 10, 11]] * 3 + [[14, 13, 12]] * 3 + [[16]] * 2 + [[17, 18]],
        [
            [21, 22, 23, 24, 25, 26],
            [31],
            [41, 42],
            [51, 52, 53],
            [61, 62, 63, 64, 65],
            [71, 72],
            [81, 82],
            [83, 84, 85],
            [86],
        ],
    ),
    # The states of prompts that end before their first suffix begin nowhere.
    "prompts of one token": ([[5]] * 2 + [[8]] * 2, [[21, 22, 23], [31], [41, 42], [51, 52]]),
}


def packed(model: Any, rows: Any) -> tuple[PackedGroups, torch.Tensor]:
    """The layout, and the log-probabilities of the block from one packed row, (B, C)."""
    layout = PackedGroups.pack(*rows)
    logits = model(
        input_ids=layout.input_ids,
        position_ids=layout.position_ids,
        attention_mask=layout.input_ids.new_ones(1, 1, 1, 1),
        layout=layout,
        use_cache=False,
    ).logits[:, layout.shared :]
    scores = logits.log_softmax(-1).gather(-1, layout.labels.clamp(min=0)[..., None])
    return layout, layout.unpack(scores[..., 0])


def text_by_text(model: Any, rows: Any) -> torch.Tensor:
    """The same, each text by itself and without padding."""
    ids, mask, longest = rows
    scores = []
    for row, seen in zip(ids, mask, strict=True):
        text = row[seen.bool()][None]
        length = int(seen[-longest:].sum())
        logits = model(input_ids=text, use_cache=False).logits[0, -length - 1 : -1]
        of_row = logits.log_softmax(-1).gather(-1, text[0, -length:, None])[:, 0]
        scores.append(torch.nn.functional.pad(of_row, (0, longest - length)))
    return torch.stack(scores)


def hybrid(architecture: str) -> Any:
    model = decoder(architecture)
    read_layouts("sdpa")
    read_layouts_of_states(model)
    return model


def gradients(model: Any, scores: torch.Tensor) -> torch.Tensor:
    model.zero_grad()
    weights = torch.randn(scores.shape, generator=torch.Generator().manual_seed(2))
    (scores * weights * (scores != 0)).sum().backward()
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("architecture", HYBRIDS)
def test_each_text_goes_on_from_the_state_of_its_prompt(architecture: str, rows: str):
    model = hybrid(architecture)
    layout, ours = packed(model, block(*ROWS[rows]))
    theirs = text_by_text(model, block(*ROWS[rows]))
    assert layout.convolutions
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-4)
    of_ours = gradients(model, ours)
    of_theirs = gradients(model, theirs)
    assert of_theirs.norm() > 0.1
    assert (of_ours - of_theirs).norm() <= 1e-5 * of_theirs.norm()


def test_a_call_without_a_layout_is_the_model_s_own():
    expected = decoder("Lfm2")(torch.arange(3, 9)[None]).logits
    assert torch.equal(hybrid("Lfm2")(torch.arange(3, 9)[None]).logits, expected)
