"""Folders as runs leave them, made without a training."""

from pathlib import Path
from typing import Any

import torch
import yaml
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer

RECIPE = {
    "dtype": "float32",
    "dataset_path": "embedded:word_problems",
    "rewards": ["gsm8k"],
    "max_completion_length": 12,
    "use_cpu": True,
}


def made_run(
    folder: Path,
    base: Path,
    *,
    recipe: dict[str, Any] | None = None,
    adapter: Any = None,
    scale: float = 0.3,
) -> PeftModel:
    """Write the folder of a run whose adapter has random weights, and return its model.

    Args:
        recipe: settings beside `RECIPE`; None for a run of a script, which leaves none.
        adapter: a configuration of PEFT.
        scale: of the adapter's weights; 0 for one that changes nothing.
    """
    tokenizer = AutoTokenizer.from_pretrained(base)
    model = AutoModelForCausalLM.from_pretrained(base)
    model = get_peft_model(model, adapter or LoraConfig(r=4, target_modules="all-linear"))
    generator = torch.Generator().manual_seed(1)
    for name, weight in model.named_parameters():
        if "lora_B" in name or "modules_to_save" in name:
            weight.data.add_(torch.randn(weight.shape, generator=generator).to(weight), alpha=scale)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    (folder / "metrics.jsonl").write_text('{"step": 1, "reward": 0.5}\n')
    if recipe is not None:
        settings = RECIPE | {"model_name_or_path": str(base)} | recipe
        (folder / "recipe.yaml").write_text(yaml.safe_dump(settings))
    return model.eval()
