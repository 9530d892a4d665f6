"""The guards of the reference: the KL at step 0, and the bytes of the frozen base."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PromptTuningConfig
from support.adapters import load, lora
from transformers import TrainerCallback

from grpo_hf import GRPOTrainer
from grpo_hf.errors import ReferenceDriftError
from grpo_hf.models import reference_guards

MakeTrainer = Callable[..., GRPOTrainer]


def test_soft_prompts_are_no_drift(make_trainer: MakeTrainer) -> None:
    soft = PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4)
    make_trainer(peft_config=soft, max_steps=1).train()


def test_a_policy_that_does_not_start_at_its_reference_is_refused(
    make_trainer: MakeTrainer,
) -> None:
    trainer = make_trainer(peft_config=lora(init_lora_weights=False))  # random B: not a no-op
    with pytest.raises(ReferenceDriftError, match="at step 0"):
        trainer.train()


@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_kl_is_zero_at_the_first_step(make_trainer: MakeTrainer, dropout: float) -> None:
    trainer = make_trainer(peft_config=lora(lora_dropout=dropout), max_steps=1)
    trainer.train()
    assert abs(trainer.state.log_history[0]["kl"]) <= 1e-6


class WriteIntoTheBase(TrainerCallback):
    def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        next(p for n, p in model.named_parameters() if "base_layer.weight" in n).data.view(-1)[
            7
        ] += 1e-3


def test_a_base_that_was_written_to_is_noticed(make_trainer: MakeTrainer) -> None:
    trainer = make_trainer(peft_config=lora())
    trainer.add_callback(WriteIntoTheBase())
    with pytest.raises(ReferenceDriftError, match="frozen weights changed"):
        trainer.train()


def test_one_flipped_bit_changes_the_digest(tiny_checkpoint: Path) -> None:
    model = load(tiny_checkpoint, dtype="bfloat16").requires_grad_(False)
    before = reference_guards.frozen_digest(model)
    assert reference_guards.frozen_digest(model) == before
    next(model.parameters()).data.view(torch.int16).view(-1)[11] ^= 1
    assert reference_guards.frozen_digest(model) != before
