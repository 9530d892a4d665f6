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
DELTA_RULE = {
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "initializer_range": 0.1,  # at 0.2 it rounds to 2e-5 of its gradient, packed or not
    "layer_types": ["linear_attention", "full_attention", "linear_attention"],
}
# A chunk of four tokens ends in the middle of prompts and suffixes.
MAMBA = {
    "mamba_n_heads": 4,
    "mamba_d_head": 16,
    "mamba_n_groups": 1,
    "mamba_d_state": 8,
    "mamba_chunk_size": 4,
}
# Models that carry state along the row, each with every kind of layer that it offers.
HYBRIDS: dict[str, dict[str, Any]] = {
    "Lfm2": {"layer_types": ["conv", "full_attention", "conv"]},
    "Lfm2Moe": {
        "layer_types": ["conv", "full_attention", "conv"],
        "num_dense_layers": 1,
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 16,
    },
    "Lfm3": {},
    "Qwen3Next": DELTA_RULE | {"num_experts": 0, "router_aux_loss_coef": 0.0},
    "Qwen3_5Text": DELTA_RULE,
    "OlmoHybrid": DELTA_RULE,
    "Bamba": MAMBA | {"attn_layer_indices": [1]},
    "GraniteMoeHybrid": MAMBA
    | {
        "layer_types": ["mamba", "attention", "mamba"],
        "num_local_experts": 0,
        "shared_intermediate_size": 64,
        "router_aux_loss_coef": 0.0,
    },
    "FalconH1": MAMBA | {"mamba_d_ssm": 64},
    "NemotronH": {
        "layers_block_type": ["mamba", "attention", "mamba"],
        "mamba_num_heads": 4,
        "mamba_head_dim": 16,
        "n_groups": 1,
        "ssm_state_size": 8,
        "chunk_size": 4,
        "time_step_min": 0.1,  # padding may not take a step of this size
    },
}
LORA = LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM")


def decoder(architecture: str, **settings: Any) -> Any:
    torch.manual_seed(0)
    known = ARCHITECTURES | HYBRIDS
    configuration = getattr(transformers, f"{architecture}Config")
    return transformers.AutoModelForCausalLM.from_config(
        configuration(**(SIZES | known.get(architecture, {}) | settings))
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
