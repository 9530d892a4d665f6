"""Dynamic sampling: silent groups give way to fresh prompts, in an order that the seed alone
decides.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from datasets import Dataset, IterableDataset
from support.models import LORA
from support.processes import SCRIPTS, launch
from support.rollouts import watched_rollouts
from support.waits import Waits

from grpo_hf import GRPOTrainer, reward_settings
from grpo_hf.errors import ConfigError
from grpo_hf.models.reference import as_reference
from grpo_hf.reporting.metrics_file import read_metrics
from grpo_hf.rollout import dynamic_sampling as refill
from grpo_hf.run_context import RefillPlan, RunContext

MakeTrainer = Callable[..., GRPOTrainer]
ROWS = Dataset.from_list([{"prompt": f"{n}: ", "easy": n % 4 != 0} for n in range(64)])
SCRIPT = SCRIPTS / "dynamic_sampling.py"


def record(seen: list[list[str]]) -> Callable[..., list[float]]:
    """Says 1 to everything for an easy prompt, differs within the other groups, and writes down
    the prompts.
    """

    @reward_settings(in_process=True, batched=True)
    def reward(
        prompts: list[str], completion_ids: list[list[int]], easy: list[bool], **_: Any
    ) -> list[float]:
        seen.append(prompts)
        return [1.0 if simple else 0.1 * index for index, simple in enumerate(easy)]

    return reward


def run(
    make_trainer: MakeTrainer, folder: Path, **settings: Any
) -> tuple[list[list[str]], list[dict[str, Any]]]:
    seen: list[list[str]] = []
    trainer = make_trainer(
        reward_funcs=record(seen),
        train_dataset=ROWS,
        peft_config=LORA,
        beta=0.0,
        output_dir=str(folder),
        per_device_train_batch_size=16,
        max_steps=3,
        **settings,
    )
    seen.clear()  # the trainer has tried the reward
    trainer.train()
    return seen, read_metrics(folder)


@pytest.mark.long
def test_silent_groups_give_way_and_the_planned_prompts_stay(
    make_trainer: MakeTrainer, tmp_path: Path
) -> None:
    planned, plain = run(make_trainer, tmp_path / "plain")
    seen, rows = run(make_trainer, tmp_path / "refilled", dynamic_sampling=True, max_refills=8)
    again, _ = run(make_trainer, tmp_path / "again", dynamic_sampling=True, max_refills=8)
    assert seen == again  # the seed decides
    starts = [index for index, prompts in enumerate(seen) if prompts in planned]
    assert [
        seen[index] for index in starts
    ] == planned  # 4 groups of 4 a step, in the planned order
    assert any(row["signal/kept_fraction"] < 1 for row in plain)
    for row, before, here, there in zip(rows, plain, starts, [*starts[1:], len(seen)], strict=True):
        assert row["reward"] == before["reward"]  # of the planned prompts
        assert row["signal/kept_fraction"] == 1.0  # after the refill every group has a signal
        missing = round(4 * (1 - before["signal/kept_fraction"]))
        assert row["signal/refilled_groups"] == missing
        assert row["signal/refill_rounds"] == there - here - 1
        assert (
            row["signal/refill_prompts"]
            == sum(len(prompts) // 4 for prompts in seen[here + 1 : there])
            >= missing
        )
        assert row["num_tokens"] > before["num_tokens"] and row["signal/refill_time"] > 0


def test_step_values_of_fresh_prompts_are_paid_for_as_well(
    make_trainer: MakeTrainer, tmp_path: Path
) -> None:
    @reward_settings(in_process=True, batched=True)
    def by_place(completion_ids: list[list[int]], easy: list[bool], **_: Any) -> list[float]:
        return [1.0 if simple else 0.1 * index for index, simple in enumerate(easy)]

    trainer = make_trainer(
        reward_funcs=by_place,
        process_reward="monte_carlo(n=1, steps=' ')",
        reward_weights=[1.0, 0.0],
        train_dataset=ROWS,
        beta=0.0,
        output_dir=str(tmp_path / "run"),
        per_device_train_batch_size=16,
        dynamic_sampling=True,
        max_steps=1,
    )
    with watched_rollouts() as rollouts:
        trainer.train()
    # A reward that sees all completions at once logs with the first of them.
    paid = [
        dict(rollout.scores.outcomes[1][0].metrics)["monte_carlo/tokens"] for rollout in rollouts
    ]
    assert len(paid) > 1
    assert read_metrics(tmp_path / "run")[0]["monte_carlo/tokens"] == sum(paid)


@pytest.mark.long
def test_no_more_rounds_than_allowed(make_trainer: MakeTrainer, tmp_path: Path) -> None:
    seen: list[list[str]] = []
    trainer = make_trainer(
        reward_funcs=record(seen),
        train_dataset=Dataset.from_list([{"prompt": f"{n}: ", "easy": True} for n in range(8)]),
        peft_config=LORA,
        beta=0.0,
        dynamic_sampling=True,
        max_refills=2,
        max_steps=2,
    )
    seen.clear()  # the trainer has tried the reward
    trainer.train()  # nothing to learn from, and it goes on
    assert [len(prompts) for prompts in seen] == [8] * 6
    assert [row["signal/refilled_groups"] for row in read_metrics(tmp_path / "run")] == [0, 0]
    assert [row["signal/kept_fraction"] for row in read_metrics(tmp_path / "run")] == [0, 0]


@pytest.mark.long
def test_fresh_groups_are_the_ones_that_train(
    make_trainer: MakeTrainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After the splice each row has its own prompt, completion and advantage: rewards recomputed
    from the tokens.
    """
    trainer = make_trainer(
        reward_funcs=lambda prompts, completion_ids, easy, **_: [
            1.0 if simple else float(sum(ids) % 17)
            for ids, simple in zip(completion_ids, easy, strict=True)
        ],
        train_dataset=ROWS,
        peft_config=LORA,
        per_device_train_batch_size=16,
        dynamic_sampling=True,
        max_refills=8,
        scale_rewards="none",
    )
    batches = []
    replace = refill.replace_groups

    def watched(*arguments: Any) -> refill.Replaced:
        replaced = replace(*arguments)
        batches.append(replaced.batch)
        return replaced

    monkeypatch.setattr(refill, "replace_groups", watched)
    trainer.train()
    for batch in batches:
        rewards = []
        for ids, mask in zip(batch["completion_ids"], batch["completion_mask"], strict=True):
            rewards.append(float(sum(ids[mask.bool()].tolist()) % 17))
        for start in range(0, 16, 4):
            group = rewards[start : start + 4]
            prompt_ids = batch["prompt_ids"][start : start + 4]
            texts = trainer.processing_class.batch_decode(prompt_ids, skip_special_tokens=True)
            assert len(set(texts)) == 1
            if int(texts[0].split(":")[0]) % 4 == 0:  # not an easy one
                expected = [reward - sum(group) / 4 for reward in group]
                assert batch["advantages"][start : start + 4].tolist() == pytest.approx(
                    expected, abs=1e-5
                )
        assert batch["num_items_in_batch"] == batch["completion_mask"].sum()
        ids = torch.cat([batch["prompt_ids"], batch["completion_ids"]], dim=1)
        mask = torch.cat([batch["prompt_mask"], batch["completion_mask"]], dim=1)
        with torch.no_grad(), as_reference(trainer.model):
            reference = trainer._get_per_token_logps_and_entropies(
                trainer.model, ids, mask, batch["completion_ids"].shape[1]
            )
        torch.testing.assert_close(batch["ref_per_token_logps"], reference[0], rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    "settings", [{"scale_rewards": "batch"}, {"multi_objective_aggregation": "normalize_then_sum"}]
)
def test_advantages_over_the_whole_batch_are_refused(
    make_trainer: MakeTrainer, settings: dict[str, Any]
) -> None:
    with pytest.raises(ConfigError, match="advantages have to be those of their own group"):
        make_trainer(dynamic_sampling=True, peft_config=LORA, **settings)


def test_a_stream_is_refused(make_trainer: MakeTrainer) -> None:
    stream = IterableDataset.from_generator(lambda: iter([{"prompt": "1: ", "easy": True}]))
    with pytest.raises(
        ConfigError,
        match=r"--dynamic_sampling draws fresh prompts, and a stream .* can only be read in order",
    ):
        make_trainer(train_dataset=stream, dynamic_sampling=True, peft_config=LORA)


@pytest.mark.long
def test_two_processes_refill_together_and_one_may_have_nothing_left(
    tiny_checkpoint: Path, tmp_path: Path
) -> None:
    """One hang would be a timeout here: without refills one process has no signal at all, with
    them both are served.
    """
    for flag in ("false", "true"):
        launch(2, tiny_checkpoint, tmp_path / flag, flag, script=SCRIPT)
    plain, refilled = (read_metrics(tmp_path / flag) for flag in ("false", "true"))
    assert [row["signal/kept_fraction"] for row in plain] == [0.5] * 3
    assert [row["signal/kept_fraction"] for row in refilled] == [1.0] * 3
    assert all(row["signal/refilled_groups"] == 2 for row in refilled)
    assert all(row["grad_norm"] > 0 for row in plain + refilled)


def test_groups_are_replaced_with_one_wait_each_way():
    """What is looked for is where groups without a signal lie, and where the fresh ones do."""
    run = RunContext(Accelerator(cpu=True), group_size=4, training=True, step=0)

    def rollout(signals: list[int], of: int) -> dict[str, torch.Tensor]:
        ids = torch.full((4 * len(signals), 3), of)
        advantages = torch.tensor(signals).repeat_interleave(4).float()
        return {
            "prompt_ids": ids,
            "completion_ids": ids,
            "completion_mask": torch.ones_like(ids),
            "advantages": advantages,
        }

    def waits(holes: int) -> tuple[int, torch.Tensor]:
        batch = rollout([0, 1] * holes, 1)
        fresh = rollout([1, 0, 1] * holes, 2)
        plan = RefillPlan(ROWS, "seed", 1, 0)
        with Waits() as seen:
            replaced = refill.replace_groups(batch, lambda rows: (fresh, None), plan, run)
        return len(seen.found), replaced.batch["prompt_ids"][::4, 0]

    few, prompts = waits(2)
    assert prompts.tolist() == [2, 1, 2, 1]
    many, prompts = waits(8)
    assert prompts.tolist() == [2, 1] * 8
    assert few == many
