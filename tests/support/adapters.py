"""Models with adapters on a small checkpoint."""

from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig
from trl import ModelConfig

from grpo_hf.models.loading import load_base


def load(folder: Path, **settings: Any) -> Any:
    return load_base(ModelConfig(model_name_or_path=str(folder), **settings))


def lora(**settings: Any) -> LoraConfig:
    return LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM", **settings)


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=torch.arange(3, 13)[None]).logits
