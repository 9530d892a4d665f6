"""Attention by variable-length calls against dense attention in float64, on the operator that has
the kernel's signature; and that no layer waits for its device.
"""

import random

import pytest
import torch
from support.varlen_reference import ReferenceOperator

from grpo_hf.torch_seam import FlashAttention
from grpo_hf.update import kernel_check, packed_attention
from grpo_hf.update.kernel_check import seen_in
from grpo_hf.update.packing import PackedGroups
from grpo_hf.update.varlen_attention import attend_by_calls

LAYOUTS = 500


def random_block(draw: random.Random) -> tuple[torch.Tensor, torch.Tensor, int]:
    """Groups of 1 to 5 completions of 0 to 7 tokens, of prompts of 1 to 9; some prompts twice."""
    prompts = []
    for _ in range(draw.randint(1, 4)):
        prompts.append([draw.randint(1, 3) for _ in range(draw.choice([1, 1, 2, 5, 9]))])
    rows = []
    for prompt in [*prompts, draw.choice(prompts)]:
        for _ in range(draw.randint(1, 5)):
            rows.append((prompt, draw.choice([0, 1, 2, 4, 7])))
    widest = max(len(prompt) for prompt, _ in rows)
    longest = max(1, *(length for _, length in rows))
    ids = torch.zeros(len(rows), widest + longest, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for row, (prompt, length) in enumerate(rows):
        ids[row, widest - len(prompt) : widest] = torch.tensor(prompt)
        ids[row, widest:] = 5
        mask[row, widest - len(prompt) : widest + length] = 1
    return ids, mask, longest


def dense(states, seen, scaling):
    """Softmax over everything, with what is not seen hidden: (1, heads, T, D) -> (1, T, H, D)."""
    query, key, value = states
    copies = query.shape[1] // key.shape[1]
    key, value = (each.repeat_interleave(copies, dim=1) for each in (key, value))
    scores = (query @ key.mT) * scaling
    return (scores.masked_fill(~seen, -torch.inf).softmax(-1) @ value).transpose(1, 2)


@pytest.mark.parametrize("part", range(5))
def test_three_calls_are_dense_attention(part: int):
    """Values and all gradients, to 1e-6, over random layouts, grouped queries and windows."""
    draw = random.Random(part)
    generator = torch.Generator().manual_seed(part)
    shapes = set()
    for _ in range(LAYOUTS // 5):
        layout = PackedGroups.pack(*random_block(draw))
        heads, key_heads = draw.choice([(4, 4), (4, 2), (6, 3), (3, 1)])
        window = draw.choice([None, None, 1, 2, 3, 8, 100])
        tokens = layout.input_ids.shape[1]
        states = [
            torch.randn(1, tokens, count, 8, generator=generator, dtype=torch.float64)
            .transpose(1, 2)
            .requires_grad_()
            for count in (heads, key_heads, key_heads)
        ]
        operator = ReferenceOperator()
        ours = attend_by_calls(operator, layout, tuple(states), window, 0.4)
        expected = dense(states, seen_in(layout, window), 0.4)
        torch.testing.assert_close(ours, expected, rtol=0, atol=1e-6)
        upstream = torch.randn(ours.shape, generator=generator, dtype=torch.float64)
        for got, wanted in zip(
            torch.autograd.grad(ours, states, upstream),
            torch.autograd.grad(expected, states, upstream),
            strict=True,
        ):
            torch.testing.assert_close(got, wanted, rtol=0, atol=1e-6)
        shapes.add((layout.shared > 0, layout.spans.alone > 0, len(operator.calls), window is None))
    # Prompts with and without a shared part, beside each other and alone, in every way.
    assert {(True, True, 3, True), (True, False, 2, False), (False, False, 1, True)} <= shapes
