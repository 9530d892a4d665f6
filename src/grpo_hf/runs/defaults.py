"""What a recipe gets for settings that it does not give, so that a short recipe learns.

TRL's defaults are made for training all weights, and the Python API keeps them. An adapter learns
nothing from them in a hundred steps (docs/settings.md has the figures). The rules are those of
"LoRA Without Regret" (Schulman et al., Thinking Machines Lab, 2025): all linear layers, about ten
times the learning rate of full fine-tuning, held constant.
"""

from collections.abc import Mapping
from typing import Any

# What decides how many completions a step has; who gives one of them has thought of all.
_BATCH = (
    "per_device_train_batch_size",
    "gradient_accumulation_steps",
    "generation_batch_size",
    "steps_per_generation",
    "num_generations",
)
# For any adapter, new or continued.
# Without warmup_steps it is a constant rate; with them, they count.
_ADAPTER_TRAINING = {"learning_rate": 1e-4, "lr_scheduler_type": "constant_with_warmup"}


def defaults_for(given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings that a recipe gets beyond those that it gives.

    Args:
        given: what the YAML file and the flags set.
    """
    chosen: dict[str, Any] = {}
    # This library trains adapters on a frozen base, where TRL trains all weights.
    if given.get("use_peft", True):
        chosen["use_peft"] = True
        chosen |= _ADAPTER_TRAINING | _new_adapter(given)
    if not any(name in given for name in _BATCH):
        # Four prompts to a step instead of one: a group that agrees gives no signal.
        chosen["gradient_accumulation_steps"] = 4
    if "logging_strategy" not in given:
        chosen["logging_steps"] = 1
    return {name: value for name, value in chosen.items() if name not in given}


def _new_adapter(given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of a new adapter; a saved one brings its own."""
    if given.get("adapter") is not None:
        return {}
    settings: dict[str, Any] = {"lora_dropout": 0.0}
    if "lora_target_parameters" not in given:
        settings["lora_target_modules"] = ["all-linear"]
    return settings


def describe(chosen: Mapping[str, Any]) -> list[str]:
    """Return a line that names the settings which a recipe left open; none where it has all."""
    named = []
    for name, value in chosen.items():
        # It is what this library is for.
        if name != "use_peft":
            shown = " ".join(value) if isinstance(value, list) else value
            named.append(f"{name} {shown}")
    if not named:
        return []
    return [
        f"the recipe leaves these settings open: {', '.join(named)} (`grpo-hf settings NAME` "
        "explains each)."
    ]
