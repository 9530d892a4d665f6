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


def is_as(found: torch.Tensor, expected: torch.Tensor) -> bool:
    """Return whether the logits of a trainer's model are those of a model that no trainer has had.

    A trainer's may multiply by another library (`update/cpu_products.py`), which rounds otherwise.
    """
    return torch.allclose(found, expected, rtol=0, atol=1e-5)
