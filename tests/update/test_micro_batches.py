"""Micro-batches: groups whole, tokens balanced, and the gradient of one large batch."""

import copy
import math
from collections.abc import Callable
from itertools import chain
from typing import Any

import pytest
import torch
import trl
from accelerate import Accelerator
from support.models import block, decoder, lora, moved
from support.waits import Waits

from grpo_hf import GRPOTrainer, reward_settings
from grpo_hf.run_context import RunContext
from grpo_hf.update.micro_batches import (
    Batch,
    deal,
    deal_rollout,
    micro_batches,
    rows_with_signal,
    select,
)
from grpo_hf.update.packing import PackedGroups

LOSSES = ["grpo", "dapo", "dr_grpo", "bnpo", "cispo", "luspo", "sapo", "vespo"]
GROUPS, SIZE = 4, 4


def alone() -> RunContext:
    """Return the view of a run's only process."""
    return RunContext(Accelerator(cpu=True), group_size=SIZE, training=True, step=0)


def generation_batch(
    trainer: GRPOTrainer, *, silent: bool = False, with_tools: bool = False
) -> Batch:
    """4 groups of 4 with prompts and completions of many lengths, sampled from a policy a little
    off the trainer's.

    With `silent` half of the groups have no signal, and `with_tools` the tokens 2 to 5 of every
    second completion are what a tool has returned.
    """
    torch.manual_seed(0)
    prompts = [list(range(3, 6 + 2 * group)) for group in range(GROUPS) for _ in range(SIZE)]
    completions = [
        torch.randint(3, 97, (1 + (row * 5) % 9,)).tolist() for row in range(GROUPS * SIZE)
    ]
    ids, mask, longest = block(prompts, completions)
    advantages = torch.randn(GROUPS * SIZE)
    if silent:
        advantages[:SIZE] = advantages[2 * SIZE : 3 * SIZE] = 0
    with torch.no_grad():
        policy = trainer._get_per_token_logps_and_entropies(trainer.model, ids, mask, longest)[0]
    batch: Batch = {
        "prompt_ids": ids[:, :-longest],
        "prompt_mask": mask[:, :-longest],
        "completion_ids": ids[:, -longest:],
        "completion_mask": mask[:, -longest:],
        "advantages": advantages,
        "num_items_in_batch": mask[:, -longest:].sum(),
        "old_per_token_logps": policy + 0.1 * torch.randn(policy.shape),
    }
    if with_tools:
        # As TRL 1.16 makes and counts it.
        batch["tool_mask"] = torch.ones_like(batch["completion_mask"])
        batch["tool_mask"][::2, 1:5] = 0
        batch["num_items_in_batch"] = (batch["completion_mask"] * batch["tool_mask"]).sum()
    return batch


def gradient(
    trainer: GRPOTrainer, compute_loss: Any, pieces: list[Batch], *, steps: int
) -> torch.Tensor:
    trainer.model.zero_grad()
    trainer.current_gradient_accumulation_steps, trainer.args.steps_per_generation = (
        len(pieces),
        steps,
    )
    for piece in pieces:
        compute_loss(trainer, trainer.model, piece).backward()
    return torch.cat([p.grad.flatten() for p in trainer.model.parameters() if p.grad is not None])


@pytest.fixture(scope="module")
def trainer(module_trainer: Callable[..., GRPOTrainer]) -> GRPOTrainer:
    return moved(module_trainer(model=decoder("Llama"), peft_config=lora(), beta=0.0))


@pytest.mark.parametrize("loss_type", LOSSES)
@pytest.mark.parametrize("silent", [False, True])
@pytest.mark.parametrize(("steps", "window"), [(1, 1), (4, 4), (4, 2), (4, 1), (2, 2), (8, 8)])
def test_an_optimizer_step_has_the_gradient_of_one_large_batch(
    trainer: GRPOTrainer, loss_type: str, silent: bool, steps: int, window: int
) -> None:
    """TRL's loss of all rows of the step at once is the oracle, rows without a signal among
    them.
    """
    trainer.loss_type = loss_type
    batch = generation_batch(trainer, silent=silent)
    kept = rows_with_signal(batch)
    assert kept.float().mean() == (0.5 if silent else 1.0)
    costs = batch["completion_mask"].sum(1) * kept
    parts = deal(batch["prompt_ids"], batch["prompt_mask"], costs, steps)
    micro = micro_batches(batch, kept, steps=steps, window=window, loss_type=loss_type, run=alone())
    for start in range(0, steps, window):
        ours = gradient(
            trainer, GRPOTrainer._compute_loss, micro[start : start + window], steps=steps
        )
        whole = select(batch, [*chain(*parts[start : start + window])])
        whole["num_items_in_batch"] = whole["completion_mask"].sum()
        expected = gradient(trainer, trl.GRPOTrainer._compute_loss, [whole], steps=1)
        assert (ours - expected).norm() <= 1e-6 * expected.norm()


@pytest.mark.parametrize("loss_type", LOSSES)
@pytest.mark.parametrize("window", [1, 2, 4])
def test_what_tools_returned_is_left_out_as_in_trl(
    trainer: GRPOTrainer, loss_type: str, window: int
) -> None:
    """TRL's masked loss of all rows of the step is the oracle, over the model's own tokens."""
    trainer.loss_type = loss_type
    batch = generation_batch(trainer, with_tools=True)
    parts = deal(
        batch["prompt_ids"], batch["prompt_mask"], batch["completion_mask"].sum(1), parts=4
    )
    micro = micro_batches(batch, None, steps=4, window=window, loss_type=loss_type, run=alone())
    unmasked = generation_batch(trainer)
    for start in range(0, 4, window):
        ours = gradient(trainer, GRPOTrainer._compute_loss, micro[start : start + window], steps=4)
        rows = [*chain(*parts[start : start + window])]
        whole = select(batch, rows)
        whole["num_items_in_batch"] = (whole["completion_mask"] * whole["tool_mask"]).sum()
        expected = gradient(trainer, trl.GRPOTrainer._compute_loss, [whole], steps=1)
        assert (ours - expected).norm() <= 1e-6 * expected.norm()
        of_all = select(unmasked, rows)
        of_all["num_items_in_batch"] = of_all["completion_mask"].sum()
        other = gradient(trainer, trl.GRPOTrainer._compute_loss, [of_all], steps=1)
        assert (ours - other).norm() > 1e-3 * other.norm()


@pytest.mark.parametrize("loss_type", ["dapo", "bnpo"])
def test_where_trls_own_accumulation_differs(trainer: GRPOTrainer, loss_type: str) -> None:
    """What docs/design.md says of TRL: token losses of an optimizer step are divided by another
    step's tokens.
    """
    trainer.loss_type = loss_type
    batch = generation_batch(trainer)
    pieces = [select(batch, rows.tolist()) for rows in torch.arange(GROUPS * SIZE).split(SIZE)][
        :2
    ]  # step 1 of 2, 2 parts each
    theirs = gradient(trainer, trl.GRPOTrainer._compute_loss, pieces, steps=4)
    whole = select(batch, list(range(2 * SIZE)))
    whole["num_items_in_batch"] = whole["completion_mask"].sum()
    expected = gradient(trainer, trl.GRPOTrainer._compute_loss, [whole], steps=1)
    assert (theirs - expected).norm() > 1e-2 * expected.norm()


@pytest.mark.parametrize(("steps", "window"), [(1, 4), (2, 4), (6, 4)])
@pytest.mark.parametrize("loss_type", ["dapo", "bnpo", "grpo"])
def test_steps_that_span_rollouts_keep_trls_normaliser(
    trainer: GRPOTrainer, loss_type: str, steps: int, window: int
) -> None:
    batch = select(generation_batch(trainer), list(range(12)))
    kept = torch.ones(12, dtype=torch.bool)
    micro = micro_batches(batch, kept, steps=steps, window=window, loss_type=loss_type, run=alone())
    for piece in micro:
        assert "loss_scale" not in piece
        assert piece["num_items_in_batch"] == batch["num_items_in_batch"]


def test_groups_stay_whole_and_tokens_even() -> None:
    torch.manual_seed(0)
    prompts = torch.arange(32).repeat_interleave(8)[:, None] + 5
    costs = (
        (torch.rand(32, 1) * 200 + 10).expand(32, 8).flatten().long()
    )  # some groups long, some short
    parts = deal(prompts, torch.ones_like(prompts), costs, 4)
    assert sorted(chain(*parts)) == list(range(256))
    for part in parts:
        assert len(part) == 64
        assert len(prompts[part].unique()) == 8  # 8 whole groups
    loads = torch.stack([costs[part].sum() for part in parts]).float()
    in_order = torch.stack([chunk.sum() for chunk in costs.split(64)]).float()
    assert loads.std() < 0.3 * in_order.std()


@pytest.mark.parametrize(
    ("rows", "group", "parts"),
    [(16, 8, 4), (12, 4, 2), (12, 6, 3), (24, 8, 3), (8, 8, 8), (10, 4, 2)],
)
def test_groups_larger_than_a_part_are_split_no_more_than_needed(
    rows: int, group: int, parts: int
) -> None:
    prompts = (torch.arange(rows) // group)[:, None] + 5
    dealt = deal(prompts, torch.ones_like(prompts), torch.arange(rows) + 1, parts)
    assert sorted(chain(*dealt)) == list(range(rows))
    assert {len(part) for part in dealt} == {rows // parts}
    if group % (rows // parts) == 0:
        assert all(len(prompts[part].unique()) == 1 for part in dealt)


def test_dealing_waits_for_the_device_as_often_for_many_groups() -> None:
    """Once for what the rows cost, and once to compare prompts."""

    def waits(groups: int) -> int:
        prompts = torch.arange(groups).repeat_interleave(4)[:, None] + 5
        batch: Any = {
            "prompt_ids": prompts,
            "prompt_mask": torch.ones_like(prompts),
            "completion_ids": prompts,
            "completion_mask": torch.ones_like(prompts),
            "advantages": torch.ones(4 * groups),
        }
        with Waits() as seen:
            micro_batches(batch, None, steps=groups, window=1, loss_type="bnpo", run=alone())
        return len(seen.found)

    assert waits(32) == waits(2) <= 3


@pytest.fixture
def tokens_forwarded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Collect how many tokens each packed row has."""
    seen: list[int] = []
    pack = PackedGroups.pack

    def watched(*block: Any) -> PackedGroups:
        packed = pack(*block)
        seen.append(packed.input_ids.shape[1])
        return packed

    monkeypatch.setattr(PackedGroups, "pack", watched)
    return seen


def test_a_part_without_a_row_left_is_one_token_without_effect(
    trainer: GRPOTrainer, tokens_forwarded: list[int]
) -> None:
    trainer.loss_type = "grpo"
    batch = generation_batch(trainer)
    batch["advantages"] = torch.zeros(GROUPS * SIZE)
    batch["advantages"][0] = 1.0
    micro = micro_batches(
        batch,
        rows_with_signal(batch),
        steps=4,
        window=4,
        loss_type="grpo",
        run=alone(),
    )
    tokens_forwarded.clear()
    for piece in micro:
        assert len(piece["advantages"]) == SIZE  # processes gather metrics of as many rows
        got = gradient(trainer, GRPOTrainer._compute_loss, [piece], steps=4)
        assert bool(got.any()) == (piece["advantages"] != 0).any()
    row = int(batch["prompt_mask"][0].sum() + batch["completion_mask"][0].sum()) - 1
    assert sorted(tokens_forwarded) == [1, 1, 1, row]


def metrics_of(trainer: GRPOTrainer, compute_loss: Any, piece: Batch) -> dict[str, float]:
    trainer._metrics["train"].clear()
    gradient(trainer, compute_loss, [piece], steps=1)
    return {name: values[-1] for name, values in trainer._metrics["train"].items()}


def test_metrics_without_rows_without_a_signal_are_trls(trainer: GRPOTrainer) -> None:
    """All but the entropy, which is that of the rows that are computed."""
    trainer.loss_type = "grpo"
    trainer.model.train()
    batch = generation_batch(trainer, silent=True)
    batch["old_per_token_logps"] = batch["old_per_token_logps"] + 0.5 * torch.randn(
        batch["old_per_token_logps"].shape
    )
    (piece,) = micro_batches(
        batch,
        rows_with_signal(batch),
        steps=1,
        window=1,
        loss_type="grpo",
        run=alone(),
    )
    ours = metrics_of(trainer, GRPOTrainer._compute_loss, piece)
    theirs = metrics_of(trainer, trl.GRPOTrainer._compute_loss, batch)
    kept = select(batch, rows_with_signal(batch).nonzero()[:, 0].tolist())
    of_kept = metrics_of(trainer, trl.GRPOTrainer._compute_loss, kept)
    assert ours.keys() == theirs.keys()
    for name, value in theirs.items():
        expected = of_kept[name] if name == "entropy" else value
        assert ours[name] == pytest.approx(expected, abs=1e-5), name
    assert 0 < ours["clip_ratio/region_mean"] < of_kept["clip_ratio/region_mean"]


def test_no_entropy_is_logged_where_no_row_is_computed(trainer: GRPOTrainer) -> None:
    trainer.loss_type = "grpo"
    trainer.model.train()
    batch = generation_batch(trainer)
    batch["advantages"] = torch.zeros(GROUPS * SIZE)
    kept = rows_with_signal(batch)
    (piece,) = micro_batches(batch, kept, steps=1, window=1, loss_type="grpo", run=alone())
    logged = metrics_of(trainer, GRPOTrainer._compute_loss, piece)
    assert math.isnan(logged["entropy"])
    assert logged["clip_ratio/region_mean"] == 0


@pytest.mark.parametrize(
    ("settings", "share"),
    [
        ({"beta": 0.0}, 0.5),
        ({"beta": 0.04}, 1.0),
        ({"beta": 0.0, "entropy_coef": 0.1}, 1.0),
        ({"beta": 0.0, "top_entropy_quantile": 0.5}, 1.0),
    ],
)
def test_no_row_is_left_out_where_more_than_its_advantage_counts(
    make_trainer: Callable[..., GRPOTrainer], settings: dict[str, Any], share: float
) -> None:
    """The first of two groups has no signal."""

    @reward_settings(in_process=True, batched=True)
    def by_place(completions: list[str], **_: Any) -> list[float]:
        return [float(max(place, 4)) for place, _ in enumerate(completions)]

    trainer = make_trainer(reward_funcs=by_place, peft_config=lora(), max_steps=1, **settings)
    trainer.train()
    assert trainer.state.log_history[0]["signal/kept_fraction"] == share


@pytest.mark.parametrize(("needs_all_rows", "share"), [(False, 0.5), (True, 1.0)])
def test_rows_that_are_left_out_keep_their_masks(
    trainer: GRPOTrainer, needs_all_rows: bool, share: float
) -> None:
    batch = generation_batch(trainer, silent=True)
    run = RunContext(trainer.accelerator, group_size=SIZE, training=True, step=0)
    # Other tests of this module change how many steps a rollout has.
    args = copy.copy(trainer.args)
    args.steps_per_generation = 1
    dealt = deal_rollout(batch, args, run, needs_all_rows=needs_all_rows)
    assert dealt.kept_fraction == share
    (piece,) = dealt.micro_batches
    assert torch.equal(piece["completion_mask"], batch["completion_mask"])
    assert ("kept_rows" in piece) == (not needs_all_rows)


def test_token_advantages_keep_a_row_with_any(trainer: GRPOTrainer) -> None:
    """(B, C) advantages, as process supervision gives them."""
    batch = generation_batch(trainer)
    batch["advantages"] = torch.zeros_like(batch["completion_ids"], dtype=torch.float)
    batch["advantages"][3, 0] = 1.0
    assert rows_with_signal(batch).nonzero().flatten().tolist() == [3]
