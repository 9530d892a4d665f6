"""Trainers that sample."""

from collections.abc import Callable
from typing import Any

import pytest
from support.models import decoder, lora, moved

from grpo_hf import GRPOTrainer

MakeTrainer = Callable[..., GRPOTrainer]


@pytest.fixture
def sampler(module_trainer: MakeTrainer) -> Callable[..., GRPOTrainer]:
    def make(architecture: str = "Llama", **settings: Any) -> GRPOTrainer:
        defaults: dict[str, Any] = {
            "model": decoder(architecture),
            "peft_config": lora(),
            "max_completion_length": 12,
        }
        trainer = moved(module_trainer(**(defaults | settings)))
        trainer.model.train()
        return trainer

    return make
