"""Small models of every kind, adapters for them, and rows to put through both."""

from typing import Any

import torch
import transformers
from peft import LoraConfig

from grpo_hf import GRPOTrainer

VOCABULARY = 97
SIZES = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,  # grouped queries
    "head_dim": 8,
    "max_position_embeddings": 64,
    "initializer_range": 0.2,  # attention that matters: at 0.02 every token would look alike
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
WINDOW = {"sliding_window": 4}
ARCHITECTURES: dict[str, dict[str, Any]] = {
    "Llama": {},
    "Qwen2": {},
    "Qwen3": {},
    "Mistral": WINDOW,
    "Phi3": WINDOW,
    "Gemma3Text": WINDOW
    | {"layer_types": ["sliding_attention", "full_attention", "sliding_attention"]},
    "SmolLM3": {"no_rope_layers": [1, 0, 1]},
    "GPT2": {
        "n_embd": 32,
        "n_layer": 3,
        "n_head": 4,
        "n_positions": 64,
        "resid_pdrop": 0,
        "embd_pdrop": 0,
        "attn_pdrop": 0,
    },
}
LORA = LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM")


def decoder(architecture: str, **settings: Any) -> Any:
    torch.manual_seed(0)
    configuration = getattr(transformers, f"{architecture}Config")
    return transformers.AutoModelForCausalLM.from_config(
        configuration(**(SIZES | ARCHITECTURES.get(architecture, {}) | settings))
    )


def lora(**settings: Any) -> LoraConfig:
    return LoraConfig(
        **({"r": 4, "target_modules": "all-linear", "task_type": "CAUSAL_LM"} | settings)
    )


def moved(trainer: GRPOTrainer) -> GRPOTrainer:
    """With an adapter that does something."""
    torch.manual_seed(1)
    for name, weight in trainer.model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.2)
    return trainer


def block(
    prompts: list[list[int]], completions: list[list[int]]
) -> tuple[torch.Tensor, torch.Tensor, int]:
    """Rows as TRL lays them out: prompts padded on the left, completions on the right, pad id 0."""
    widest, longest = max(map(len, prompts)), max(map(len, completions))
    ids = [
        [0] * (widest - len(p)) + p + c + [0] * (longest - len(c))
        for p, c in zip(prompts, completions, strict=True)
    ]
    mask = [
        [0] * (widest - len(p)) + [1] * len(p + c) + [0] * (longest - len(c))
        for p, c in zip(prompts, completions, strict=True)
    ]
    return torch.tensor(ids), torch.tensor(mask), longest
