"""Advantages per token in a run, against the paper's equations applied to what rewards said."""

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from conftest import count_ones
from support.models import LORA
from support.rollouts import rollout_of, watched_rollouts
from transformers import AutoModelForCausalLM

from grpo_hf import GRPOTrainer, reward_settings
from grpo_hf.algorithm.advantages import outcome_advantages, process_advantages
from grpo_hf.algorithm.objective import grpo_loss
from grpo_hf.algorithm.token_advantages import zero_in_constant_groups
from grpo_hf.errors import ConfigError
from grpo_hf.run_context import RunContext
from grpo_hf.scoring.steps import StepRewards, step_end_tokens

MakeTrainer = Callable[..., GRPOTrainer]
Run = Callable[..., tuple[GRPOTrainer, dict[str, Any]]]
G, B = 4, 8


@reward_settings(in_process=True)
def length(completions: list[str], **_: Any) -> list[float]:
    return [float(len(text)) for text in completions]


@reward_settings(in_process=True)
def pairs(completions: list[str], **_: Any) -> list[StepRewards | None]:
    """Two characters are a step, and earn the code of the first one.

    A completion that begins with a space has no steps.
    """
    return [None if text.startswith(" ") else _pairs(text) for text in completions]


def _pairs(text: str) -> StepRewards:
    ends = list(range(2, len(text) + 1, 2))
    return StepRewards(ends, [float(ord(text[end - 2]) % 7) for end in ends])


@reward_settings(in_process=True)
def whole(completions: list[str], **_: Any) -> list[StepRewards]:
    """`length`, as the reward of one step."""
    return [
        StepRewards([len(t)], [float(len(t))]) if t else StepRewards([], []) for t in completions
    ]


@pytest.fixture
def run(
    make_trainer: MakeTrainer, tmp_path: Path
) -> Callable[..., tuple[GRPOTrainer, dict[str, Any]]]:
    """Return a function that trains with some rewards, and returns trainer and first rollout."""

    def trained(rewards: list[Any], **settings: Any) -> tuple[GRPOTrainer, dict[str, Any]]:
        folder = tempfile.mkdtemp(dir=tmp_path)
        trainer = make_trainer(
            reward_funcs=rewards, output_dir=folder, **({"max_steps": 1} | settings)
        )
        with watched_rollouts() as seen:
            trainer.train()
        batch, scores = seen[0]
        return trainer, {**batch, "texts": list(scores.completions)}

    return trained


@pytest.mark.parametrize("scale", ["group", "batch", "none"])
def test_outcome_and_process_advantages_add(run: Run, scale: str) -> None:
    trainer, batch = run([length, pairs], reward_weights=[3.0, 0.5], scale_rewards=scale)
    texts, lengths = batch["texts"], batch["completion_mask"].sum(1).tolist()
    rewards = torch.tensor([3.0 * len(text) for text in texts])
    outcome = outcome_advantages(rewards.view(-1, G), scale=scale).view(B, 1)
    steps = pairs(texts)
    ends = [
        step_end_tokens(trainer.processing_class, text, ids[:n].tolist(), step.ends) if step else []
        for text, ids, n, step in zip(texts, batch["completion_ids"], lengths, steps, strict=True)
    ]
    process = process_advantages(
        [s.rewards if s else [] for s in steps], ends, lengths, G, scale=scale
    )
    expected = (outcome + 0.5 * process) * batch["completion_mask"]
    torch.testing.assert_close(batch["advantages"].double(), expected, rtol=1e-5, atol=1e-6)
    assert len(set(batch["advantages"][0].tolist())) > 2


def test_one_step_a_completion_is_outcome_supervision(run: Run) -> None:
    _, by_steps = run([whole])
    _, by_outcome = run([length])
    assert torch.equal(by_steps["completion_ids"], by_outcome["completion_ids"])
    expected = by_outcome["advantages"][:, None] * by_outcome["completion_mask"]
    torch.testing.assert_close(by_steps["advantages"], expected, rtol=1e-5, atol=1e-6)


def test_one_step_a_completion_is_outcome_supervision_with_truncated_ones_masked(
    run: Run, tiny_checkpoint: Path
) -> None:
    """TRL leaves truncated completions in the mean and deviation of their group.

    Their steps stay in R as well.
    """

    def batch(reward: Any) -> dict[str, Any]:
        model = AutoModelForCausalLM.from_pretrained(tiny_checkpoint)
        model.generation_config.eos_token_id = list(range(1, 60))  # so that some completions end
        return run([reward], model=model, mask_truncated_completions=True, max_completion_length=6)[
            1
        ]

    by_steps, by_outcome = batch(whole), batch(length)
    masked = ~by_steps["completion_mask"].bool().any(1)
    assert masked.any() and not masked.all()
    expected = by_outcome["advantages"][:, None] * by_outcome["completion_mask"]
    torch.testing.assert_close(by_steps["advantages"], expected, rtol=1e-5, atol=1e-6)


def test_a_step_reward_stays_one_where_it_gives_a_number_to_all(run: Run) -> None:
    """Otherwise its weight would be another from rollout to rollout."""

    @reward_settings(in_process=True, batched=True)
    def sometimes(completions: list[str], trainer_state: Any, **_: Any) -> list[Any]:
        return (
            pairs(completions)
            if trainer_state.global_step == 0
            else [float(len(text)) for text in completions]
        )

    trainer, _ = run([sometimes, length], max_steps=2)
    rows = [row for row in trainer.state.log_history if "reward" in row]
    assert [row["rewards/sometimes/steps"] for row in rows][1] == 1.0


def test_the_loss_is_the_paper_s_with_an_advantage_per_token(run: Run) -> None:
    trainer, batch = run([pairs], beta=0.0, learning_rate=0.0)
    inputs = {name: value for name, value in batch.items() if name != "texts"}
    ids = torch.cat([batch["prompt_ids"], batch["completion_ids"]], 1)
    mask = torch.cat([batch["prompt_mask"], batch["completion_mask"]], 1)
    with torch.no_grad():
        logps = trainer._get_per_token_logps_and_entropies(
            trainer.model, ids, mask, batch["completion_ids"].shape[1]
        )
        loss = trainer._compute_loss(trainer.model, inputs)
    per_token = logps[0].double()
    expected = grpo_loss(
        per_token, per_token, None, batch["advantages"].double(), batch["completion_mask"], beta=0.0
    )
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    assert abs(loss.item()) > 1e-3


@pytest.mark.long
@pytest.mark.parametrize(
    "loss_type", ["grpo", "bnpo", "dr_grpo", "dapo", "cispo", "luspo", "sapo", "vespo"]
)
def test_every_loss_takes_them_packed_or_not(run: Run, loss_type: str) -> None:
    losses = []
    for packed in (True, False):
        settings = {"loss_type": loss_type, "num_iterations": 2, "gradient_accumulation_steps": 2}
        settings |= {"importance_sampling_level": "sequence"} if loss_type == "luspo" else {}
        trainer, _ = run(
            [pairs, length],
            packed_update=packed,
            per_device_train_batch_size=4,
            max_steps=2,
            **settings,
        )
        losses.append([row["loss"] for row in trainer.state.log_history if "loss" in row])
    assert losses[0] == pytest.approx(losses[1], rel=1e-3, abs=1e-5)


def test_a_silent_group_is_one_whose_tokens_are_all_silent(run: Run) -> None:
    @reward_settings(in_process=True)
    def one_step_of_two(completions: list[str], **_: Any) -> list[StepRewards]:
        return [
            StepRewards([1, len(t)], [1.0, 0.0]) if len(t) > 1 else StepRewards([], [])
            for t in completions
        ]

    trainer, batch = run([one_step_of_two], beta=0.0, dynamic_sampling=True)
    assert batch["advantages"].any()
    assert trainer.state.log_history[0]["signal/kept_fraction"] == 1.0
    assert trainer.state.log_history[0]["signal/refill_rounds"] == 0.0


def test_the_table_and_the_log_speak_of_steps(run: Run) -> None:
    trainer, batch = run([pairs])
    lengths = batch["completion_mask"].sum(1)
    means = batch["advantages"].sum(1) / lengths
    assert list(trainer._logs["advantages"]) == pytest.approx(means.tolist(), abs=1e-6)
    row = trainer.state.log_history[0]
    steps = [0 if text.startswith(" ") else len(text) // 2 for text in batch["texts"]]
    assert row["rewards/pairs/steps"] == pytest.approx(sum(steps) / B)


def test_a_step_beyond_the_text_is_a_failure(run: Run) -> None:
    @reward_settings(in_process=True)
    def beyond(completions: list[str], **_: Any) -> list[StepRewards]:
        return [
            StepRewards([len(text) + (i == 1)], [float(i)]) if text else None
            for i, text in enumerate(completions)
        ]

    trainer, batch = run([reward_settings(in_process=True, batched=True)(beyond)])
    assert trainer.state.log_history[0]["rewards/beyond/failed/wrong_type"] == pytest.approx(1 / B)
    assert not batch["advantages"][1].any()
    assert batch["advantages"][0].any()


def test_settings_for_one_advantage_a_completion_are_refused(run: Run) -> None:
    with pytest.raises(ConfigError, match="multi_objective_aggregation"):
        run([pairs, length], multi_objective_aggregation="normalize_then_sum")


@pytest.mark.parametrize("estimator", ["reward", "gae"])
def test_step_rewards_are_refused(make_trainer: MakeTrainer, estimator: str) -> None:
    @reward_settings(in_process=True)
    def halves(completions: list[str], **_: Any) -> list[StepRewards | None]:
        return [StepRewards([len(text)], [1.0]) if text else None for text in completions]

    trainer = make_trainer(reward_funcs=halves, advantage_estimator=estimator, peft_config=LORA)
    with pytest.raises(ConfigError, match=r"advantage_estimator is .*a reward speaks of its steps"):
        rollout_of(trainer)


class TestPlainReward:
    """`advantage_estimator="reward"`: the advantage is the reward itself."""

    def test_the_advantage_is_the_weighted_sum_of_rewards(self, make_trainer: MakeTrainer) -> None:
        @reward_settings(in_process=True)
        def some(completions: list[str], **_: Any) -> list[float | None]:
            return [None if "1" in text else 2.0 for text in completions]

        trainer = make_trainer(
            reward_funcs=[count_ones, some],
            reward_weights=[1.0, 0.5],
            advantage_estimator="reward",
            beta=0.0,
        )
        batch, scores = rollout_of(trainer)
        texts = scores.completions
        expected = [len(text) + text.count("1") + (0.0 if "1" in text else 1.0) for text in texts]
        assert batch["advantages"].tolist() == pytest.approx(expected)
        assert list(trainer._logs["advantages"]) == pytest.approx(expected)

    @pytest.mark.parametrize("beta", [0.0, 0.04])
    def test_the_gradient_is_that_of_likelihood_of_right_samples(
        self, make_trainer: MakeTrainer, beta: float
    ) -> None:
        """Compare with equation 5 and GC = I(correct): the gradient of Σ_right 1/|o| log π(o) / B.

        At step 0 the KL has no gradient.
        """

        @reward_settings(in_process=True)
        def odd(completions: list[str], **_: Any) -> list[float]:
            return [float(len(text) % 2) for text in completions]

        trainer = make_trainer(
            reward_funcs=odd,
            advantage_estimator="reward",
            beta=beta,
            peft_config=LORA,
            early_rewards=False,
        )
        trainer.current_gradient_accumulation_steps = 1  # which transformers sets in a run
        batch, _ = rollout_of(trainer)
        right = batch["advantages"]
        assert set(right.tolist()) == {0.0, 1.0}
        weights = [weight for weight in trainer.model.parameters() if weight.requires_grad]

        def gradient(loss: torch.Tensor) -> torch.Tensor:
            return torch.cat([g.flatten() for g in torch.autograd.grad(loss, weights)])

        ours = gradient(trainer._compute_loss(trainer.model, batch))
        ids = torch.cat([batch["prompt_ids"], batch["completion_ids"]], 1)
        mask = torch.cat([batch["prompt_mask"], batch["completion_mask"]], 1)
        positions = (mask.cumsum(1) - 1).clamp(min=0)
        logits = trainer.model(input_ids=ids, attention_mask=mask, position_ids=positions).logits[
            :, :-1
        ]
        logps = (
            logits.log_softmax(-1)
            .gather(2, ids[:, 1:, None])
            .squeeze(2)[:, -batch["completion_ids"].shape[1] :]
        )
        kept = batch["completion_mask"]
        expected = gradient(-(right * (logps * kept).sum(1) / kept.sum(1)).mean())
        torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-6)

    def test_rows_without_a_reward_cost_nothing(self, make_trainer: MakeTrainer) -> None:
        @reward_settings(in_process=True)
        def rare(completions: list[str], **_: Any) -> list[float]:
            return [float(index == 3) for index in range(len(completions))]

        rare = reward_settings(in_process=True, batched=True)(rare)
        trainer = make_trainer(
            reward_funcs=rare, advantage_estimator="reward", beta=0.0, max_steps=1
        )
        trainer.train()
        assert trainer.state.log_history[0]["signal/kept_fraction"] == pytest.approx(1 / 8)

    def test_groups_that_are_all_right_are_not_silent(self, make_trainer: MakeTrainer) -> None:
        @reward_settings(in_process=True)
        def always(completions: list[str], **_: Any) -> list[float]:
            return [1.0] * len(completions)

        trainer = make_trainer(
            reward_funcs=always,
            advantage_estimator="reward",
            dynamic_sampling=True,
            beta=0.0,
            max_steps=1,
        )
        trainer.train()
        assert trainer.state.log_history[0]["signal/refill_rounds"] == 0


@pytest.mark.parametrize(
    ("rewards", "zero"),
    [
        ([[0.01]] * 6, True),
        ([[0.01, 3.0]] * 6, True),
        ([[0.01]] * 5 + [[0.02]], False),
        ([[float("nan")]] * 6, True),
        ([[0.01]] * 5 + [[float("nan")]], False),
    ],
)
def test_equal_rewards_are_no_signal_to_the_last_bit(rewards: Any, zero: bool) -> None:
    # What float32 leaves of 0.01 - mean(0.01, six times) over 1e-4.
    advantages = torch.full((6,), 9.3e-6)
    run = RunContext(Accelerator(cpu=True), group_size=6, training=True, step=0)
    exact = zero_in_constant_groups(advantages, torch.tensor(rewards), run)
    assert bool(exact.any()) == (not zero)
