"""A policy, its tokenizer and a reward model on it."""

from pathlib import Path
from typing import Any

import pytest
from peft import PeftModel
from support.reward_models import policy_on, stirred
from transformers import AutoTokenizer

from grpo_hf.reward_models.model import RewardModel


@pytest.fixture
def policy(tiny_checkpoint: Path) -> PeftModel:
    return policy_on(tiny_checkpoint)


@pytest.fixture(scope="module")
def tokenizer(tiny_checkpoint: Path) -> Any:
    return AutoTokenizer.from_pretrained(tiny_checkpoint, padding_side="left")


@pytest.fixture
def model(policy: PeftModel, tokenizer: Any) -> RewardModel:
    """A reward model whose adapter does something."""
    made = RewardModel.on(policy, tokenizer)
    stirred(made)
    return made
