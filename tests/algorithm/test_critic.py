"""PPO's critic: against equations in float64, and what it leaves alone."""

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig
from safetensors.torch import load_file
from support.rollouts import rollout_of

from grpo_hf import GRPOConfig, GRPOTrainer
from grpo_hf.algorithm.advantages import gae
from grpo_hf.errors import ConfigError, ModelError
from grpo_hf.models import adapters as roles

MakeTrainer = Callable[..., GRPOTrainer]
LORA = LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM")


def gae_by_definition(
    values: list[float], rewards: list[float], gamma: float, lam: float
) -> list[float]:
    """Equation 16 of arXiv 1506.02438 as the sum that it is."""
    following = [*values, 0.0][1:]
    deltas = [r + gamma * after - v for v, r, after in zip(values, rewards, following, strict=True)]
    return [
        sum((gamma * lam) ** (s - t) * deltas[s] for s in range(t, len(deltas)))
        for t in range(len(deltas))
    ]


@pytest.mark.parametrize(
    ("gamma", "lam"), [(1.0, 0.95), (0.9, 0.5), (1.0, 1.0), (1.0, 0.0), (0.0, 0.95)]
)
def test_gae_is_the_sum_of_equation_16_over_the_tokens_that_count(gamma: float, lam: float) -> None:
    torch.manual_seed(0)
    values, rewards = torch.randn(6, 9, dtype=torch.float64), torch.randn(6, 9, dtype=torch.float64)
    mask = (torch.rand(6, 9) < 0.6).long()
    mask[0], mask[1] = 1, 0
    mask[2, 6:] = 0  # padding, as most rows have it
    found = gae(values, rewards, mask, gamma, lam)
    for row in range(6):
        kept = mask[row].bool()
        expected = gae_by_definition(
            values[row, kept].tolist(), rewards[row, kept].tolist(), gamma, lam
        )
        assert found[row, kept].tolist() == pytest.approx(expected, rel=1e-12)
        assert not found[row, ~kept].any()


def test_with_lambda_1_the_advantage_is_the_return_less_the_value() -> None:
    values, rewards = torch.randn(3, 5).double(), torch.zeros(3, 5).double()
    rewards[:, -1] = torch.tensor([1.0, 0.0, -2.0])
    assert torch.allclose(
        gae(values, rewards, torch.ones(3, 5), 1.0, 1.0), rewards[:, -1:] - values
    )


class TestCritic:
    @pytest.fixture
    def trainer(self, make_trainer: MakeTrainer) -> GRPOTrainer:
        return make_trainer(advantage_estimator="gae", peft_config=LORA, critic_learning_rate=3e-3)

    @pytest.mark.long
    def test_advantages_are_whitened_gae_with_the_reward_at_the_last_token(
        self, trainer: GRPOTrainer
    ) -> None:
        torch.nn.init.normal_(trainer.critic.head.weight, std=0.1)
        before = {weight: weight.detach().clone() for weight in trainer.critic._weights}
        batch, scores = rollout_of(trainer)
        texts = scores.completions
        with torch.no_grad():
            for weight, value in before.items():
                weight.copy_(value)  # the values of before the fit
            ids = torch.cat([batch["prompt_ids"], batch["completion_ids"]], 1)
            mask = torch.cat([batch["prompt_mask"], batch["completion_mask"]], 1)
            flat = []
            with roles.seen_through(trainer.model, "critic"):
                for row, text in enumerate(texts):  # one row at a time, without padding
                    states = roles.causal_model(trainer.model).base_model(
                        ids[row, mask[row].bool()][None]
                    )[0][0]
                    n = int(batch["completion_mask"][row].sum())
                    values = trainer.critic.head(states[-n - 1 : -1]).squeeze(1).double().tolist()
                    rewards = [0.0] * (n - 1) + [float(len(text) + text.count("1"))]
                    flat += gae_by_definition(values, rewards, 1.0, 0.95)
        raw = torch.tensor(flat, dtype=torch.float64)
        expected = (raw - raw.mean()) / raw.std()
        found = batch["advantages"][batch["completion_mask"].bool()].double()
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
        assert not batch["advantages"][~batch["completion_mask"].bool()].any()

    @pytest.mark.long
    def test_it_learns_what_completions_earn(self, trainer: GRPOTrainer) -> None:
        batch, _ = rollout_of(trainer)
        rewards = torch.tensor(
            [1.0, 1.0, 1.0, 1.0, -1.0, -1.0, -1.0, -1.0]
        )  # by prompt, so it can be known at once
        errors = []
        for _ in range(30):
            _, loss = trainer.critic.advantages(batch, rewards, 0)
            errors.append(loss)
        assert errors[0] > 0.5
        assert errors[-1] < errors[0] / 10
        with torch.no_grad(), roles.seen_through(trainer.model, "critic"):
            values = trainer.critic._values(batch, list(range(8)))[:, 0]
        assert values[:4].mean() > 0.5 and values[4:].mean() < -0.5

    def test_it_disturbs_nothing_of_the_policy(self, trainer: GRPOTrainer) -> None:
        batch, _ = rollout_of(trainer)
        critic = roles.role_weights(trainer.model, "critic")
        others = {
            name: value for name, value in trainer.model.named_parameters() if name not in critic
        }
        before = {name: value.detach().clone() for name, value in others.items()}
        flags = [value.requires_grad for value in trainer.model.parameters()]
        modes = [module.training for module in trainer.model.modules()]
        random.seed(7)
        torch.manual_seed(7)
        trainer.critic.advantages(batch, torch.arange(8.0), 0)
        drawn = (torch.rand(4).tolist(), random.random())
        random.seed(7)
        torch.manual_seed(7)
        assert drawn == (torch.rand(4).tolist(), random.random())
        assert trainer.model.active_adapter == "default"
        assert [value.requires_grad for value in trainer.model.parameters()] == flags
        assert [module.training for module in trainer.model.modules()] == modes
        assert all(
            torch.equal(value, before[name]) and value.grad is None
            for name, value in others.items()
        )
        assert all(weight.grad is None for weight in critic.values())

    def test_a_run_trains_policy_and_critic_each_with_its_optimizer(
        self, trainer: GRPOTrainer
    ) -> None:
        critic = {
            name: w.detach().clone()
            for name, w in roles.role_weights(trainer.model, "critic").items()
        }
        policy = {
            name: w.detach().clone()
            for name, w in roles.role_weights(trainer.model, "default").items()
        }
        trainer.train()  # with the guards of the base
        mine = {
            id(weight) for group in trainer.optimizer.param_groups for weight in group["params"]
        }
        assert mine == {
            id(weight) for weight in roles.role_weights(trainer.model, "default").values()
        }
        for name, before in (("critic", critic), ("default", policy)):
            after = roles.role_weights(trainer.model, name)
            assert any(not torch.equal(after[key], value) for key, value in before.items())
        assert trainer.critic.head.weight.any()
        assert trainer.state.log_history[0]["critic/loss"] > 0
        assert trainer.state.log_history[0]["kl"] == pytest.approx(
            0, abs=1e-6
        )  # the KL term is in the loss

    def test_a_completion_that_nobody_could_judge_has_no_part(self, trainer: GRPOTrainer) -> None:
        batch, _ = rollout_of(trainer)
        rewards = torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, float("nan")])
        state = [weight.detach().clone() for weight in trainer.critic._weights]
        found, _ = trainer.critic.advantages(batch, rewards, 0)
        counted = batch["completion_mask"][:7].bool()
        assert not found[7].any()
        assert found[:7][counted].mean().item() == pytest.approx(0, abs=1e-5)
        assert found[:7][counted].std().item() == pytest.approx(1, abs=1e-4)
        assert all(weight.isfinite().all() for weight in trainer.critic._weights)
        assert any(
            not torch.equal(*pair) for pair in zip(state, trainer.critic._weights, strict=True)
        )

    @pytest.mark.long
    def test_a_resumed_run_takes_up_its_adapter_and_learns_on(
        self, make_trainer: MakeTrainer
    ) -> None:
        settings = {
            "advantage_estimator": "gae",
            "critic_learning_rate": 3e-3,
            "save_strategy": "steps",
        }
        make_trainer(peft_config=LORA, save_steps=2, **settings).train()
        trainer = make_trainer(peft_config=LORA, save_steps=2, max_steps=4, **settings)
        folder = Path(trainer.args.output_dir) / "checkpoint-2"
        trainer.train(resume_from_checkpoint=str(folder))
        saved = load_file(folder / "critic" / "adapter_model.safetensors")
        weights = roles.role_weights(trainer.model, "critic")
        assert {id(weight) for weight in weights.values()} < {
            id(weight) for weight in trainer.critic._weights
        }
        apart = [
            (w - saved[name.replace(".critic.", ".")]).abs().max().item()
            for name, w in weights.items()
        ]
        assert 0 < max(apart) < 0.01  # steps of 3e-3 away; the first moves the new head alone
        assert not any(weight.requires_grad for weight in weights.values())

    def test_it_needs_an_adapter(self, make_trainer: MakeTrainer) -> None:
        with pytest.raises(ModelError, match="puts its critic on the frozen base"):
            make_trainer(advantage_estimator="gae")


def configured(**settings: Any) -> GRPOConfig:
    return GRPOConfig(output_dir="unused", report_to="none", use_cpu=True, **settings)


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        (
            {"advantage_estimator": "ppo"},
            "advantage_estimator is 'ppo'; expected one of 'group', 'reward', 'gae'",
        ),
        ({"gae_lambda": 1.5}, "gae_lambda is 1.5; expected a number from 0 to 1"),
        ({"gae_gamma": -0.1}, "gae_gamma is -0.1"),
        ({"critic_learning_rate": 0.0}, "critic_learning_rate is 0.0; expected a number above 0"),
        (
            {"advantage_estimator": "reward", "process_reward": "monte_carlo"},
            "does not go with process_reward",
        ),
        (
            {"advantage_estimator": "gae", "dynamic_sampling": True},
            "does not go with dynamic_sampling True",
        ),
    ],
)
def test_settings_that_do_not_go_together(settings: dict[str, Any], named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        configured(**settings)
