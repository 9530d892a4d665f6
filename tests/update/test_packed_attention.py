"""Attention over a packed row against softmax written out in float64, both ways of computing it."""

import pytest
import torch
from support.models import block
from transformers import AttentionInterface

from grpo_hf.errors import NotPackableError
from grpo_hf.update import packed_attention as attention
from grpo_hf.update.packing import PackedGroups

HEADS, SIZE = 4, 8

BLOCKS = {
    "ragged": (
        [[5, 6, 7, 8, 9]] * 3 + [[4, 3, 2]] * 2,
        [[1, 2, 3, 4], [5], [6, 7], [8, 9, 1], [2, 2, 2, 2]],
    ),
    "prompts of one token": ([[5]] * 2 + [[4]], [[1, 2, 3], [5], [6, 7]]),
    "one prompt of one token": ([[5]] * 2 + [[4, 3, 2]], [[1, 2, 3], [5], [6, 7]]),
    "completions of one token": ([[5, 6, 7]] * 2, [[1], [2]]),
}


def brute_force(layout, query, key, value, scale, window):
    """Each token in turn: the scores of what it may see, their softmax, the mean of the values."""
    outputs = query.new_zeros(*query.shape[:-1], value.shape[-1])
    for prompt, _, suffixes in layout.groups:
        for part in (prompt, *suffixes):
            seen_before = [] if part is prompt else list(range(prompt.start, prompt.stop))
            for token in range(part.start, part.stop):
                seen = seen_before + list(range(part.start, token + 1))
                seen = seen[-window:] if window else seen
                for head in range(query.shape[1]):
                    of = head * key.shape[1] // query.shape[1]
                    weights = (key[0, of, seen] @ query[0, head, token] * scale).softmax(0)
                    outputs[0, head, token] = weights @ value[0, of, seen]
    return outputs.transpose(1, 2)


@pytest.mark.parametrize("name", BLOCKS)
@pytest.mark.parametrize("key_heads", [4, 2, 1])
@pytest.mark.parametrize("window", [None, 2, 3, 100])
@pytest.mark.parametrize("padded", [False, True])
def test_values_and_gradients_are_those_of_softmax(name, key_heads, window, padded, monkeypatch):
    if padded:  # what other devices, windows and dropout take
        monkeypatch.setattr(attention._ByParts, "apply", None)
        monkeypatch.setattr(attention, "_goes_by_parts", lambda *_: False)
    torch.manual_seed(0)
    layout = PackedGroups.pack(*block(*BLOCKS[name]))
    tokens = layout.input_ids.shape[1]
    # Values of another size than keys, as latent attention has them.
    of_values = SIZE - 2 if padded else SIZE
    states = [
        torch.randn(1, tokens, heads, size, dtype=torch.float64).transpose(1, 2).requires_grad_()
        for heads, size in ((HEADS, SIZE), (key_heads, SIZE), (key_heads, of_values))
    ]
    ours = attention.attend(layout, None, *states, scaling=0.3, sliding_window=window)
    expected = brute_force(layout, *states, 0.3, window)
    torch.testing.assert_close(ours, expected, rtol=0, atol=1e-12)
    upstream = torch.randn_like(ours)
    for got, wanted in zip(
        torch.autograd.grad(ours, states, upstream),
        torch.autograd.grad(expected, states, upstream),
        strict=True,
    ):
        torch.testing.assert_close(got, wanted, rtol=0, atol=1e-12)


def test_without_a_layout_the_original_function_answers():
    calls = []

    def original(module, query, key, value, attention_mask, **options):
        calls.append((attention_mask, options))
        return "answer", None

    AttentionInterface.register("of_a_test", original)
    attention.read_layouts("of_a_test")
    attention.read_layouts("of_a_test")  # once is enough
    function = AttentionInterface()["of_a_test"]
    assert function(None, 1, 2, 3, "mask", scaling=2.0, softcap=5.0) == ("answer", None)
    assert (
        function(module=None, query=1, key=2, value=3, attention_mask="mask", scaling=2.0)[0]
        == "answer"
    )
    assert calls == [("mask", {"scaling": 2.0, "softcap": 5.0}), ("mask", {"scaling": 2.0})]
    assert function.__wrapped__ is original


def test_what_changes_attention_and_is_not_known_is_refused():
    layout = PackedGroups.pack(*block([[5, 6]], [[1]]))
    states = torch.randn(1, 1, 2, SIZE)
    attention.attend(
        layout, None, states, states, states, softcap=None, position_ids=torch.zeros(1)
    )
    with pytest.raises(NotPackableError, match="uses softcap"):
        attention.attend(layout, None, states, states, states, softcap=30.0)


def test_attention_of_the_models_own_is_out_of_reach():
    with pytest.raises(NotPackableError, match="'eager'"):
        attention.read_layouts("eager")
