"""The decoding loop: how a token is drawn, and how often the host waits for the device."""

from functools import partial

import pytest
import torch
from support.models import decoder
from support.waits import Waits
from transformers import GenerationConfig

from grpo_hf.errors import NotFiniteError
from grpo_hf.rollout import decoding


def looked_up_in_float64(scores: torch.Tensor) -> torch.Tensor:
    """One uniform number per row, in the cumulated softmax in float64."""
    ends = scores.double().softmax(-1).cumsum(-1)
    uniform = torch.rand(len(scores), 1, dtype=torch.float64)
    return torch.searchsorted(ends, uniform * ends[:, -1:], right=True)[:, 0]


@pytest.mark.parametrize("vocabulary", [2, 511, 512, 513, 3001])
@pytest.mark.parametrize("kept", [1, 2, 2000])
def test_draws_are_those_of_a_float64_softmax(vocabulary: int, kept: int):
    torch.manual_seed(vocabulary)
    scores = torch.randn(2000, vocabulary) * 3
    # What a processor leaves out, as top-k does, has the share 0.
    lowest = scores.topk(min(kept, vocabulary)).values[:, -1:]
    scores = scores.masked_fill(scores < lowest, -torch.inf)
    torch.manual_seed(1)
    expected = looked_up_in_float64(scores)
    torch.manual_seed(1)
    drawn, finite = decoding._draw(scores)
    assert finite
    assert torch.equal(drawn, expected)
    assert scores.gather(1, drawn[:, None]).isfinite().all()


@pytest.mark.parametrize("number", [0.0, 1.0])
def test_the_ends_of_what_can_be_drawn_have_a_share(number: float, monkeypatch):
    """Tokens without a share stand in front of all others and behind them."""
    scores = torch.full((1, 2000), -torch.inf)
    scores[0, [700, 900, 1200]] = torch.tensor([0.0, 1.0, 2.0])
    monkeypatch.setattr(torch, "rand", lambda *shape, **named: torch.full(shape, number, **named))
    drawn, _ = decoding._draw(scores)
    assert drawn.tolist() == [700 if number == 0 else 1200]


@pytest.mark.parametrize("sampled", [False, True])
def test_the_host_waits_once_for_a_token(sampled: bool):
    """Rows that end early are dropped on the way."""
    model = decoder("Llama").eval()
    ids = torch.tensor([[5, 6, 7]] * 4 + [[8, 9, 10]] * 4)
    config = GenerationConfig(do_sample=sampled, pad_token_id=0, eos_token_id=[*range(2, 12)])

    def waits(tokens: int) -> int:
        torch.manual_seed(0)
        with torch.no_grad(), Waits() as seen:
            model.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                generation_config=config,
                max_new_tokens=tokens,
                min_new_tokens=tokens if not sampled else 0,
                # The copies of a prompt's states are kept together on CPUs alone.
                custom_generate=partial(decoding.sample_groups, shares_prefixes=False),
            )
        return len(seen.found)

    assert waits(12) - waits(4) == 8


def test_a_wait_is_counted():
    with Waits() as seen:
        values = torch.arange(4)
        bool(values.any())
        values.nonzero()
        values[values > 1]
        values.sum().item()
    assert seen.found == ["__bool__", "nonzero", "__getitem__", "item"]


def test_logits_that_are_not_numbers_end_the_sampling():
    model = decoder("Llama").eval()
    torch.nn.init.constant_(model.lm_head.weight, float("nan"))
    ids = torch.tensor([[5, 6, 7]] * 2)
    with pytest.raises(NotFiniteError, match="logits are not finite"), torch.no_grad():
        model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            do_sample=True,
            max_new_tokens=3,
            custom_generate=decoding.sample_groups,
        )
