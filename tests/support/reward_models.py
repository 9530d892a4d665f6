"""Prompts, pairs and policies for reward models."""

from pathlib import Path
from typing import Any

import torch
from peft import AutoPeftModelForSequenceClassification, LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM

from grpo_hf.models import adapters as roles
from grpo_hf.reward_models.model import RewardModel
from grpo_hf.reward_models.preferences import Pair

PROMPTS = [
    "6 * 7?",
    "How many apples are left of 12, if 5 are eaten?",
    "1 + 1 = ",
    "Tom has 3 boxes.",
] * 2


COMPLETIONS = [" 42", " She has 7.\n#### 7", " 2", " " + "and so on " * 9] * 2


IDS = [[17, 30, 45, 61], [33, 29], [20, 21, 22, 23, 24, 25, 26]]


PAIRS = [Pair(f"{n} + {n} = ", f"{2 * n}", "no idea", 0.0) for n in range(16)]


def policy_on(checkpoint: Path, **lora: Any) -> PeftModel:
    """Return a policy that differs from its base, with dropout that would change its outputs."""
    torch.manual_seed(3)
    settings = {
        "r": 4,
        "lora_alpha": 8,
        "lora_dropout": 0.3,
        "target_modules": ["q_proj", "v_proj", "down_proj"],
    }
    base = AutoModelForCausalLM.from_pretrained(checkpoint)
    return get_peft_model(
        base,
        LoraConfig(**(settings | {"task_type": "CAUSAL_LM", "init_lora_weights": False} | lora)),
    )


def stirred(model: RewardModel) -> None:
    generator = torch.Generator().manual_seed(5)
    for weight in roles.role_weights(model.model, model.adapter).values():
        weight.data.normal_(std=0.1, generator=generator)


def alone(model: Any, ids: list[int]) -> float:
    with torch.no_grad():
        return model(input_ids=torch.tensor([ids])).logits.item()


CHAT = [[{"role": "user", "content": text}] for text in PROMPTS]


ANSWERS = [[{"role": "assistant", "content": text}] for text in COMPLETIONS]


def classifier(folder: Path) -> Any:
    return AutoPeftModelForSequenceClassification.from_pretrained(str(folder), num_labels=1).eval()
