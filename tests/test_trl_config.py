"""TRL's own configuration with our trainer: every field of it does what it does with TRL's trainer.

Both trainers get the same completions, learn by plain gradient descent, and write greedily.
"""

from collections.abc import Callable
from dataclasses import fields
from inspect import signature
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
import transformers
import trl
from datasets import Dataset
from support.differential import check_case
from support.differential_cases import Case
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from grpo_hf import GRPOTrainer, reward_settings
from grpo_hf.demo.tiny_model import tiny_tokenizer

MakeTrainer = Callable[..., GRPOTrainer]

# What needs a GPU, a server or the Hub.
ELSEWHERE = {
    "ds3_gather_for_generation",
    "log_completions_hub_repo",
    "transformers_continuous_batching_config",
    "use_transformers_continuous_batching",
    "use_transformers_paged",
    "use_vllm",
    *(field.name for field in fields(trl.GRPOConfig) if field.name.startswith("vllm_")),
}
PLAIN: dict[str, Any] = {
    "num_generations": 2,
    "per_device_train_batch_size": 4,
    "max_completion_length": 6,
    "max_steps": 2,
    "learning_rate": 0.05,
    "beta": 0.0,
    "bf16": False,
    "gradient_checkpointing": False,
    "generation_kwargs": {"do_sample": False},
}
# By name: the settings of a run, so that each field has a value that is not TRL's default.
RUNS: dict[str, dict[str, Any]] = {
    "sampling": {
        "trust_remote_code": True,
        "disable_dropout": True,
        "pad_to_multiple_of": 8,
        "shuffle_dataset": False,
        "generation_batch_size": 8,
        "temperature": 0.7,
        "top_p": 0.95,
        "top_k": 9,
        "min_p": 0.01,
        "repetition_penalty": 1.2,
        "cache_implementation": "dynamic",
        "chat_template_kwargs": {"enable_thinking": False},
    },
    "vespo": {
        "loss_type": "vespo",
        "steps_per_generation": 2,
        "num_iterations": 2,
        "vespo_k_pos": 1.0,
        "vespo_lambda_pos": 2.0,
        "vespo_k_neg": 2.0,
        "vespo_lambda_neg": 1.0,
        "off_policy_mask_threshold": 0.01,
    },
    "sapo": {
        "loss_type": "sapo",
        "num_iterations": 2,
        "sapo_temperature_neg": 2.0,
        "sapo_temperature_pos": 1.5,
        "use_adaptive_entropy": True,
        "entropy_coef": 0.1,
        "entropy_coef_min": 0.05,
        "entropy_coef_max": 0.5,
        "entropy_coef_delta": 0.05,
        "entropy_target": 4.0,
    },
    "reference": {
        "loss_type": "grpo",
        "num_iterations": 2,
        "beta": 0.3,
        "use_bias_correction_kl": False,
        "epsilon": 0.01,
        "epsilon_high": 0.02,
        "delta": 1.1,
        "sync_ref_model": True,
        "ref_model_sync_steps": 1,
        "ref_model_mixup_alpha": 0.5,
        "model_init_kwargs": {"attn_implementation": "sdpa"},
    },
    "experts": {
        "loss_type": "luspo",
        "importance_sampling_level": "sequence",
        "reward_weights": [0.5, 2.0],
        "multi_objective_aggregation": "normalize_then_sum",
        "scale_rewards": "none",
        "mask_truncated_completions": True,
        "top_entropy_quantile": 0.6837,
        "cast_lm_head_to_fp32": True,
        "router_aux_loss_coef": 0.05,
    },
    "evaluation": {
        "eval_strategy": "steps",
        "eval_steps": 1,
        "per_device_eval_batch_size": 3,
        "num_generations_eval": 3,
        "log_completions": True,
        "log_multimodal": False,
        "log_unique_prompts": True,
        "num_completions_to_print": 1,
        "max_tool_calling_iterations": 1,
    },
    "half precision": {"bf16": True, "gradient_checkpointing": True, "logging_steps": 2},
}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}


@reward_settings(in_process=True)
def lengths(completions: list[str], **_: Any) -> list[float]:
    return [float(len(text)) for text in completions]


def test_every_field_is_in_a_run() -> None:
    of_transformers = {field.name for field in fields(transformers.TrainingArguments)}
    own = {field.name for field in fields(trl.GRPOConfig)} - of_transformers
    tried = set().union(PLAIN, *RUNS.values())
    assert own - tried == ELSEWHERE


@pytest.mark.long
@pytest.mark.parametrize("name", RUNS)
def test_fields_do_what_they_do_with_trl(name: str, tmp_path: Path) -> None:
    training = PLAIN | RUNS[name]
    given = {"name": "default", "as_model": False, "kind": "Lora"}
    adapter = given | {"settings": {"r": 4, "target_modules": "all-linear"}}
    whole = name in ("reference", "experts")
    case = Case(
        seed=0,
        architecture="Qwen3Moe" if name == "experts" else "Qwen3",
        options=EXPERTS if name == "experts" else {},
        model={
            "dtype": "float32",
            "attention": None,
            "ends": 40,
            "by_name": name == "reference",
            "frozen": False,
        },
        adapter=None if whole else adapter,
        training=training,
        ours={},
        trl_config=True,
        completions="greedy",
        data={
            "rows": 8,
            "longest": 8,
            "chat": name == "sampling",
            "repeated": False,
            "even": False,
            "streamed": False,
        },
        rewards=["tokens", "coarse"],
    )
    tokenizer = tiny_tokenizer()
    tokenizer.padding_side = "left"
    assert check_case(case, tokenizer, tmp_path) == "equal"


@pytest.fixture
def reward_model(tiny_checkpoint: Path, tmp_path: Path) -> Path:
    """A folder with a classifier of one label and its tokenizer."""
    torch.manual_seed(0)
    model = AutoModelForSequenceClassification.from_pretrained(tiny_checkpoint, num_labels=1)
    model.save_pretrained(tmp_path / "reward")
    AutoTokenizer.from_pretrained(tiny_checkpoint).save_pretrained(tmp_path / "reward")
    return tmp_path / "reward"


@pytest.fixture
def run_of_trl(tiny_checkpoint: Path, tmp_path: Path) -> MakeTrainer:
    """A function that makes our trainer with TRL's configuration; anything can be set."""

    def make(**settings: Any) -> GRPOTrainer:
        names = signature(GRPOTrainer).parameters
        constructor = {name: settings.pop(name) for name in list(settings) if name in names}
        configuration = {
            "output_dir": str(tmp_path / "run"),
            "per_device_train_batch_size": 3,
            "num_generations": 3,
            "max_completion_length": 8,
            "max_steps": 2,
            "report_to": "none",
            "use_cpu": True,
        }
        given = {
            "model": str(tiny_checkpoint),
            "reward_funcs": lengths,
            "train_dataset": Dataset.from_list([{"prompt": f"{n}: "} for n in range(9)]),
        }
        return GRPOTrainer(args=trl.GRPOConfig(**(configuration | settings)), **given | constructor)

    return make


def test_a_model_that_generates_otherwise_is_asked_as_trl_asks_it(run_of_trl: MakeTrainer) -> None:
    """Users put their own `generate` on a model, and tests replace the one of transformers."""
    trainer = run_of_trl(mask_truncated_completions=True)
    written = torch.tensor([[5, 6, 7, 8], [9, 10, 1, 0], [12, 13, 14, 1]])
    seen: list[set[str]] = []

    def generate(input_ids: torch.Tensor, **others: Any) -> torch.Tensor:
        seen.append(set(others))
        return torch.cat([input_ids, written], dim=1)

    with patch.object(trainer.model, "generate", side_effect=generate):
        trainer.train()
    # The check before the first rollout asks with a processor of its own.
    asked = [names for names in seen if "logits_processor" not in names]
    assert asked == [{"attention_mask", "generation_config"}] * 2


def test_completions_that_are_all_cut_off_teach_nothing(run_of_trl: MakeTrainer) -> None:
    trainer = run_of_trl(
        mask_truncated_completions=True, generation_kwargs={"suppress_tokens": [1]}
    )
    before = {name: weight.clone() for name, weight in trainer.model.named_parameters()}
    trainer.train()
    for name, weight in trainer.model.named_parameters():
        assert torch.equal(weight, before[name]), name


def test_trl_warns_of_rows_that_no_reward_judges(
    run_of_trl: MakeTrainer, caplog: pytest.LogCaptureFixture
) -> None:
    def judges_nothing(completions: list[str], **_: Any) -> list[None]:
        return [None] * len(completions)

    trainer = run_of_trl(reward_funcs=judges_nothing)
    with caplog.at_level("WARNING", logger="trl.trainer.grpo_trainer"):
        trainer.train()
    assert "each reward returned None for it, or failed" in caplog.text


def test_reward_models_have_their_own_tokenizers(
    run_of_trl: MakeTrainer, reward_model: Path
) -> None:
    own = AutoTokenizer.from_pretrained(reward_model)
    constructor = {"reward_funcs": str(reward_model), "reward_processing_classes": own}
    trainer = run_of_trl(**constructor)
    assert trainer.reward_processing_classes == [own]
    trainer.train()
    assert any("rewards/reward/mean" in row for row in trainer.state.log_history)
    with pytest.raises(ValueError, match="must match"):
        run_of_trl(**constructor | {"reward_funcs": [str(reward_model)] * 2})


@pytest.mark.long
def test_each_step_gets_the_rows_of_its_rollout(run_of_trl: MakeTrainer) -> None:
    rows = [{"prompt": f"{number}: "} for number in range(9)]
    trainer = run_of_trl(
        gradient_accumulation_steps=3,
        steps_per_generation=4,
        num_generations=4,
        num_iterations=2,
        shuffle_dataset=False,
        max_steps=-1,
        num_train_epochs=1,
    )
    with patch.object(GRPOTrainer, "training_step", wraps=trainer.training_step) as step:
        trainer.train()
    given = [call.args[1] for call in step.call_args_list]
    # Three prompts in four rows each; four micro-batches, twice; three rollouts in an epoch.
    expected = []
    for start in range(0, 9, 3):
        expected += [[row for row in rows[start : start + 3] for _ in range(4)]] * 8
    assert given == expected
