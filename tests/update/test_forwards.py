"""Rows are cut into forwards by tokens: the numbers stay, and no forward has more than it may."""

import random
from types import SimpleNamespace

import pytest
import torch
from support.models import block
from support.waits import OnDevice

from grpo_hf.run_context import RunTraits
from grpo_hf.update import log_probs
from grpo_hf.update.forwards import TokenBudget, cut_rows
from grpo_hf.update.packing import PackedGroups


def test_groups_stay_whole_where_they_fit():
    prompts, lengths = [0, 0, 1, 1, 2, 2], [5, 5, 5, 5, 5, 5]
    assert cut_rows(prompts, lengths, [2] * 6, budget=100) == [slice(0, 6)]
    # A group has 5 + 2 + 2 tokens.
    assert cut_rows(prompts, lengths, [2] * 6, budget=18) == [slice(0, 4), slice(4, 6)]
    assert cut_rows(prompts, lengths, [2] * 6, budget=17) == [
        slice(0, 2),
        slice(2, 4),
        slice(4, 6),
    ]
    assert cut_rows(prompts, lengths, [2] * 6, budget=8) == [slice(i, i + 1) for i in range(6)]
    assert cut_rows(prompts, lengths, [2] * 6, budget=1) == [slice(i, i + 1) for i in range(6)]


def test_rows_that_are_not_computed_cost_nothing():
    assert cut_rows([0, 1, 2], [9, 9, 9], [0, 0, 3], budget=12) == [slice(0, 3)]


def test_no_forward_has_more_tokens_than_it_may():
    draw = random.Random(0)
    for _ in range(200):
        prompts, completions = [], []
        for prompt in range(draw.randint(1, 4)):
            tokens = [prompt + 1] * draw.randint(1, 9)
            for _ in range(draw.randint(1, 5)):
                prompts.append(tokens)
                completions.append([1] * draw.randint(1, 9))
        ids, mask, longest = block(prompts, completions)
        tokens = draw.randint(1, 60)
        pieces = TokenBudget(tokens).pieces(ids, mask, longest)
        assert [row for piece in pieces for row in range(piece.start, piece.stop)] == list(
            range(len(ids))
        )
        for piece in pieces:
            packed = PackedGroups.pack(ids[piece], mask[piece], longest).input_ids.shape[1]
            assert packed <= tokens or piece.stop - piece.start == 1


def test_a_long_group_is_cut_and_the_numbers_stay(make_trainer, monkeypatch):
    """16 rows whose forward would have 176 tokens."""
    trainer = make_trainer(num_generations=16, per_device_train_batch_size=16)
    ids, mask, longest = block(
        [[5, 6, 7, 8] * 4] * 16, [[9, 10, 11] * 3 + [row] for row in range(16)]
    )
    seen = []
    forward = log_probs.forward_packed
    monkeypatch.setattr(
        log_probs,
        "forward_packed",
        lambda model, layout, **named: (
            seen.append(layout.input_ids.shape[1]) or forward(model, layout, **named)
        ),
    )
    results = []
    for tokens in (8192, 64):
        trainer.args.max_tokens_per_forward = tokens
        seen.clear()
        with torch.no_grad():
            results.append(
                trainer._get_per_token_logps_and_entropies(
                    trainer.model, ids, mask, longest, 2, compute_entropy=True
                )
            )
        assert max(seen) <= tokens
        assert (len(seen) == 1) == (tokens == 8192)
    torch.testing.assert_close(results[0][:2], results[1][:2], rtol=0, atol=1e-5)
    # What is learned from stays one forward: its graphs would all be kept, cut or not.
    seen.clear()
    trainer._get_per_token_logps_and_entropies(trainer.model, ids, mask, longest)
    assert len(seen) == 1


@pytest.mark.parametrize("tokens", [None, 1, 8192])
def test_a_device_is_waited_for_once(tokens, make_trainer, monkeypatch):
    """However many rows, prompts and forwards there are: both halves of the block leave it then."""
    trainer = make_trainer()
    monkeypatch.setattr(OnDevice, "found", [])
    for prompts in (1, 3):
        ids, mask, longest = block([[5, 6, 7, 8]] * 4 * prompts, [[9, 10, 11]] * 4 * prompts)
        budget = None if tokens is None else TokenBudget(tokens)
        with torch.no_grad():
            log_probs.packed_log_probs(
                trainer.model,
                ids.as_subclass(OnDevice),
                mask.as_subclass(OnDevice),
                longest,
                budget=budget,
            )
        assert OnDevice.found == ["cpu", "cpu"]
        OnDevice.found.clear()


class OtherProcess:
    """An accelerator beside another process, which has so many forwards to make."""

    device = torch.device("cpu")

    def __init__(self, others: int) -> None:
        self.others = others

    def gather(self, own: torch.Tensor) -> torch.Tensor:
        return torch.cat([own, torch.tensor([self.others])])


@pytest.mark.parametrize("others", [1, 5])
def test_with_sharded_weights_all_processes_forward_as_often(
    others: int, make_trainer, monkeypatch
):
    trainer = make_trainer()
    ids, mask, longest = block([[5, 6, 7, 8]] * 4, [[9, 10, 11]] * 4)
    args = SimpleNamespace(max_tokens_per_forward=7)
    sharded, whole = RunTraits(sharded_weights=True), RunTraits()
    assert TokenBudget.of_run(args, whole, OtherProcess(9)).accelerator is None
    budget = TokenBudget.of_run(args, sharded, OtherProcess(others))
    pieces = budget.pieces(ids, mask, longest)
    assert len(pieces) == max(4, others)
    with torch.no_grad():
        every, _ = log_probs.packed_log_probs(trainer.model, ids, mask, longest)
        cut, entropies = log_probs.packed_log_probs(
            trainer.model, ids, mask, longest, budget=budget, entropy=True
        )
    assert entropies.shape == cut.shape == every.shape
    torch.testing.assert_close(cut, every, rtol=0, atol=1e-5)
