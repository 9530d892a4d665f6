"""A subclass behaves as it would under TRL: the same weights after the same completions.

Both trainers get the same completions from a rollout function, and learn by plain gradient descent,
so that rounding stays rounding.
"""

import copy
import itertools
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import trl
from datasets import Dataset
from peft import LoraConfig
from transformers import AutoModelForCausalLM, AutoTokenizer

import grpo_hf
from grpo_hf import reward_settings

GROUP, ROWS, LONGEST, STEPS = 4, 8, 10, 2
# Of a weight of about 0.05 after two steps of plain descent, in float32.
SAME = 1e-6

Subclass = Callable[[type], type]

pytestmark = pytest.mark.filterwarnings("ignore:You are using 'rollout_func'")


@reward_settings(in_process=True)
def by_ids(completion_ids: list[list[int]], **_: Any) -> list[float]:
    return [float(len(ids)) + sum(ids) % 7 for ids in completion_ids]


@reward_settings(in_process=True)
def constant(completions: list[Any], **_: Any) -> list[float]:
    return [1.0] * len(completions)


class Completions:
    """A rollout function that gives both trainers the same completions, some of them masked."""

    def __init__(self, tokenizer: Any, *, env_mask: bool = False) -> None:
        self.tokenizer = tokenizer
        self.env_mask = env_mask
        self.calls = 0

    def __call__(self, prompts: list[Any], trainer: Any) -> dict[str, Any]:
        self.calls += 1
        chance = random.Random(self.calls)
        completions = []
        masks = []
        for _ in prompts:
            length = chance.choice([3, 6, LONGEST])
            ids = [chance.randrange(5, len(self.tokenizer)) for _ in range(length)]
            if length < LONGEST:
                ids[-1] = self.tokenizer.eos_token_id
            completions.append(ids)
            masks.append([int(not 1 <= place < 3) for place in range(length)])
        output = {
            "prompt_ids": self.tokenizer(prompts)["input_ids"],
            "completion_ids": completions,
            "logprobs": None,
        }
        return output | ({"env_mask": masks} if self.env_mask else {})


@pytest.fixture
def learned(tiny_checkpoint: Path, tmp_path: Path) -> Callable[..., Any]:
    """A function that trains a subclass of either trainer: (weights, logged steps)."""
    numbers = itertools.count()

    def train(base: Any, subclass: Subclass, **settings: Any) -> tuple[Any, list[dict[str, Any]]]:
        tokenizer = AutoTokenizer.from_pretrained(tiny_checkpoint, padding_side="left")
        config = trl.GRPOConfig if base is trl.GRPOTrainer else grpo_hf.GRPOConfig
        reward = settings.pop("reward", by_ids)
        env_mask = settings.pop("env_mask", False)
        sampled = settings.pop("sampled", False)
        torch.manual_seed(0)
        given = {
            "output_dir": str(tmp_path / f"run-{next(numbers)}"),
            "num_generations": GROUP,
            "per_device_train_batch_size": ROWS,
            "max_completion_length": LONGEST,
            "max_steps": STEPS,
            "logging_steps": 1,
            "loss_type": "grpo",
            "beta": 0.04,
            "use_bias_correction_kl": False,
            "optim": "sgd",
            "learning_rate": 0.05,
            "lr_scheduler_type": "constant",
            "max_grad_norm": 1e9,
            "shuffle_dataset": False,
            "save_strategy": "no",
            "report_to": "none",
            "use_cpu": True,
            "bf16": False,
            "gradient_checkpointing": False,
        }
        trainer = subclass(base)(
            AutoModelForCausalLM.from_pretrained(tiny_checkpoint),
            reward,
            config(**(given | settings)),
            Dataset.from_list([{"prompt": f"Anna has {n} apples."} for n in range(8)]),
            processing_class=tokenizer,
            peft_config=LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM"),
            rollout_func=None if sampled else Completions(tokenizer, env_mask=env_mask),
        )
        trainer.train()
        weights = [p.detach().flatten() for p in trainer.model.parameters() if p.requires_grad]
        logged = [row for row in trainer.state.log_history if "loss" in row]
        return torch.cat(weights), logged

    return train


def assert_same(learned: Callable[..., Any], subclass: Subclass, **settings: Any) -> torch.Tensor:
    """Both trainers learn the same, and log the same; the weights are returned."""
    expected, of_trl = learned(trl.GRPOTrainer, subclass, **copy.copy(settings))
    found, ours = learned(grpo_hf.GRPOTrainer, subclass, **copy.copy(settings))
    assert (found - expected).abs().max().item() <= SAME
    assert len(ours) == len(of_trl) == STEPS
    for row, other in zip(ours, of_trl, strict=True):
        for name in ("loss", "grad_norm", "reward", "reward_std", "kl", "entropy"):
            if name in other:
                assert row[name] == pytest.approx(other[name], abs=1e-4, rel=1e-4), name
    return found


def plain(base: type) -> type:
    return type("Plain", (base,), {})


def shaped(base: type) -> type:
    class Shaped(base):
        """Adds to what `super()` says; within each group, so that advantages change."""

        def _calculate_rewards(self, inputs, prompts, completions, completion_ids_list):
            rewards = super()._calculate_rewards(inputs, prompts, completions, completion_ids_list)
            lengths = torch.tensor([len(ids) for ids in completion_ids_list])
            return rewards + 0.25 * (lengths % 5).float()[:, None]

    return Shaped


def own_rewards(base: type) -> type:
    class OwnRewards(base):
        """Scores without `super()`."""

        def _calculate_rewards(self, inputs, prompts, completions, completion_ids_list):
            return torch.tensor([[float(ids[0] % 11)] for ids in completion_ids_list])

    return OwnRewards


def further_term(base: type) -> type:
    class FurtherTerm(base):
        """Adds a term that looks at every completion token, whatever its advantage."""

        def _compute_loss(self, model, inputs):
            loss = super()._compute_loss(model, inputs)
            ids = torch.cat([inputs["prompt_ids"], inputs["completion_ids"]], dim=1)
            mask = torch.cat([inputs["prompt_mask"], inputs["completion_mask"]], dim=1)
            width = inputs["completion_ids"].shape[1]
            log_probs = self._get_per_token_logps_and_entropies(model, ids, mask, width)[0]
            scored = inputs["completion_mask"]
            return loss + 0.1 * (log_probs * scored).sum() / scored.sum()

    return FurtherTerm


def entropy_term(base: type) -> type:
    class EntropyTerm(base):
        """Adds the entropies of all rows, as TRL's trainer hands them over, to the loss."""

        def _get_per_token_logps_and_entropies(self, *positional, **named):
            scored = super()._get_per_token_logps_and_entropies(*positional, **named)
            self.entropies = scored[1]
            return scored

        def compute_loss(self, model, inputs, *positional, **named):
            loss = super().compute_loss(model, inputs, *positional, **named)
            mask = inputs["completion_mask"]
            return loss - 0.5 * (self.entropies * mask).sum() / mask.sum()

    return EntropyTerm


def patched(base: type) -> type:
    class Patched(base):
        """A method that is put on the object: the loss counts every completion token."""

        def __init__(self, *positional, **named):
            super().__init__(*positional, **named)
            of_class = self._compute_loss

            def with_lengths(model, inputs):
                loss = of_class(model, inputs)
                return loss * (1 + inputs["completion_mask"].sum() / 100)

            self._compute_loss = with_lengths

    return Patched


def shorter(base: type) -> type:
    class Shorter(base):
        """Changes what was generated, in place, before anybody scores it."""

        def _generate(self, prompts):
            output = super()._generate(prompts)
            for ids in output[1]:
                ids[0] = 5 + ids[0] % 3
            return output

    return Shorter


def other_advantages(base: type) -> type:
    class OtherAdvantages(base):
        """Changes what the loss is given."""

        def _prepare_inputs(self, generation_batch):
            inputs = super()._prepare_inputs(generation_batch)
            return {**inputs, "advantages": inputs["advantages"].clamp(min=0)}

    return OtherAdvantages


@pytest.mark.long
@pytest.mark.parametrize(
    "subclass",
    [
        plain,
        shaped,
        own_rewards,
        further_term,
        entropy_term,
        patched,
        shorter,
        other_advantages,
    ],
)
def test_a_subclass_learns_what_it_learns_under_trl(
    learned: Callable[..., Any], subclass: Subclass
):
    found = assert_same(learned, subclass)
    if subclass is not plain:
        without, _ = learned(grpo_hf.GRPOTrainer, plain)
        assert (found - without).abs().max().item() > 10 * SAME, "the override changes nothing"


@pytest.mark.parametrize(
    "subclass",
    [plain, shaped, own_rewards, further_term, entropy_term, patched, other_advantages],
)
def test_and_so_it_does_without_a_kl_term(learned: Callable[..., Any], subclass: Subclass):
    """Where rows without a signal could be left out: not behind a subclass that looks at them."""
    assert_same(learned, subclass, beta=0.0)


@pytest.mark.long
def test_shaping_counts_where_the_rewards_alone_say_nothing(learned: Callable[..., Any]):
    found = assert_same(learned, shaped, reward=constant, beta=0.0)
    without, _ = learned(grpo_hf.GRPOTrainer, plain, reward=constant, beta=0.0)
    assert (found - without).abs().max().item() > 10 * SAME


@pytest.mark.long
def test_two_rewards_of_one_name_are_two(learned: Callable[..., Any]):
    """TRL logs both into one column; the second alone would say nothing of any group."""

    @reward_settings(in_process=True)
    def by_ids_too(completions: list[Any], **_: Any) -> list[float]:
        return [1.0] * len(completions)

    by_ids_too.__name__ = "by_ids"
    both = [by_ids, by_ids_too]
    found = assert_same(learned, plain, reward=both, beta=0.0)
    without, _ = learned(grpo_hf.GRPOTrainer, plain, reward=constant, beta=0.0)
    assert (found - without).abs().max().item() > 10 * SAME


@pytest.mark.parametrize("subclass", [further_term, entropy_term, patched])
def test_a_further_term_sees_rows_without_a_signal(learned: Callable[..., Any], subclass: Subclass):
    assert_same(learned, subclass, reward=constant, beta=0.0)


@pytest.mark.parametrize(
    "settings", [{}, {"loss_type": "dapo", "mask_truncated_completions": True}]
)
def test_tokens_that_the_policy_did_not_write(
    learned: Callable[..., Any], settings: dict[str, Any]
):
    assert_same(learned, plain, env_mask=True, **settings)


@pytest.mark.long
def test_noise_on_embeddings_is_trls(learned: Callable[..., Any]):
    """NEFTune's noise depends on the length of the padded rows; both draw the same."""
    found = assert_same(learned, plain, neftune_noise_alpha=5.0)
    without, _ = learned(grpo_hf.GRPOTrainer, plain)
    assert (found - without).abs().max().item() > 10 * SAME


def test_what_is_changed_after_sampling_is_what_rewards_score(learned: Callable[..., Any]):
    """Scoring begins when completions exist; a subclass may change them after that."""
    seen: list[list[int]] = []

    @reward_settings(in_process=True)
    def first_token(completion_ids: list[list[int]], **_: Any) -> list[float]:
        seen.extend(ids[:1] for ids in completion_ids)
        return [float(ids[0]) for ids in completion_ids]

    _, logged = learned(grpo_hf.GRPOTrainer, shorter, reward=first_token, sampled=True)
    assert all(5 <= row["rewards/first_token/mean"] <= 7 for row in logged)
    assert len(seen) >= STEPS * ROWS
