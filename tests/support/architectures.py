"""Small models of transformers' types, with every kind of layer that their configuration offers."""

from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM

LAYERS = 4
SIZES: dict[str, Any] = {
    "vocab_size": 97,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "initializer_range": 0.2,  # attention that matters
}
EXPERTS = {
    "num_experts": 4,
    "num_local_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 32,
    "shared_expert_intermediate_size": 32,
    "n_routed_experts": 4,
    "n_shared_experts": 1,
    "n_group": 1,
    "topk_group": 1,
}
HEADS = {"head_dim": 16}
LINEAR = HEADS | {
    "layer_types": ["linear_attention", "full_attention"] * 2,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 16,
    "linear_value_head_dim": 16,
}
CONVOLUTIONS = {"layer_types": ["conv", "full_attention"] * 2}
WINDOWS = HEADS | {
    "layer_types": ["sliding_attention", "full_attention"] * 2,
    "sliding_window": 4,
}
LATENT = {
    "q_lora_rank": 32,
    "kv_lora_rank": 16,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 16,
    "v_head_dim": 16,
    "num_key_value_heads": 4,
    "first_k_dense_replace": 1,
}
MAMBA = {
    "mamba_n_heads": 8,
    "mamba_d_head": 16,
    "mamba_d_state": 16,
    "mamba_n_groups": 1,
}
SHARED = {"num_kv_shared_layers": 2, "vocab_size_per_layer_input": 97}
# By model type: settings beside the sizes.
SETTINGS: dict[str, dict[str, Any]] = {
    "lfm2": CONVOLUTIONS,
    "lfm2_moe": CONVOLUTIONS | EXPERTS | {"num_dense_layers": 2},
    "lfm3": CONVOLUTIONS,
    "qwen3_5_text": LINEAR,
    "qwen3_5_moe_text": LINEAR | EXPERTS,
    "qwen3_next": LINEAR | EXPERTS,
    "olmo_hybrid": LINEAR,
    "granitemoehybrid": MAMBA
    | EXPERTS
    | {"layer_types": ["mamba", "attention"] * 2, "shared_intermediate_size": 32},
    "bamba": MAMBA | {"attn_layer_indices": [1, 3]},
    "falcon_h1": MAMBA | HEADS | {"mamba_n_heads": 4, "mamba_d_ssm": 64},
    "nemotron_h": EXPERTS
    | HEADS
    | {
        "layers_block_type": ["mamba", "attention", "mlp", "moe"],
        "mamba_num_heads": 8,
        "mamba_head_dim": 16,
        "ssm_state_size": 16,
        "n_groups": 1,
        "moe_shared_expert_intermediate_size": 32,
    },
    "jamba": {
        "attn_layer_period": 2,
        "attn_layer_offset": 1,
        "expert_layer_period": 2,
        "expert_layer_offset": 1,
        "num_experts": 4,
        "mamba_d_state": 8,
        "mamba_dt_rank": 8,
        "use_mamba_kernels": False,
    },
    "zamba2": {
        "layers_block_type": ["mamba", "hybrid"] * 2,
        "num_mem_blocks": 1,
        "mamba_d_state": 16,
        "n_mamba_heads": 8,
        "mamba_headdim": 16,
        "num_key_value_heads": 4,
    },
    "zaya": {"ffn_hidden_size": 64, "num_experts": 2, "zaya_mlp_expansion": 32},
    "recurrent_gemma": HEADS
    | {
        "block_types": ["recurrent", "recurrent", "attention"],
        "lru_width": 64,
        "attention_window_size": 16,
    },
    "minimax": LINEAR | EXPERTS,
    "deepseek_v2": LATENT | EXPERTS | {"topk_method": "greedy"},
    "deepseek_v3": LATENT | EXPERTS,
    "deepseek_v32": LATENT | EXPERTS | {"index_head_dim": 16, "index_n_heads": 2, "index_topk": 4},
    "glm4_moe_lite": LATENT | EXPERTS,
    "longcat_flash": LATENT
    | {
        "head_dim": 8,
        "num_layers": 2,
        "ffn_hidden_size": 96,
        "expert_ffn_hidden_size": 32,
        "n_routed_experts": 4,
        "zero_expert_num": 2,
        "moe_topk": 2,
    },
    "youtu": LATENT,
    "minicpm3": LATENT,
    "axk1": LATENT | EXPERTS,
    "axk2": LATENT | EXPERTS,
    "jetmoe": EXPERTS | {"kv_channels": 16},
    "gemma2": WINDOWS,
    "gemma3_text": WINDOWS,
    "gemma3n_text": WINDOWS
    | SHARED
    | {
        "hidden_size_per_layer_input": 8,
        "laurel_rank": 4,
        "intermediate_size": [96] * LAYERS,
        "activation_sparsity_pattern": [0.0] * LAYERS,
    },
    "gemma4_text": WINDOWS | SHARED | {"hidden_size_per_layer_input": 8, "global_head_dim": 16},
    "cohere2": WINDOWS,
    "gpt_oss": WINDOWS | EXPERTS,
    "afmoe": WINDOWS | EXPERTS | {"num_dense_layers": 1},
    "llama4_text": HEADS
    | {
        "num_local_experts": 2,
        "intermediate_size_mlp": 96,
        "attention_chunk_size": 8,
        "layer_types": ["chunked_attention", "full_attention"] * 2,
        "no_rope_layers": [1, 0] * 2,
    },
    "glm4_moe": HEADS | EXPERTS | {"first_k_dense_replace": 1},
    "dots1": HEADS
    | EXPERTS
    | {"first_k_dense_replace": 1, "layer_types": ["full_attention"] * LAYERS},
    "solar_open": HEADS | EXPERTS,
    "ernie4_5_moe": {
        "moe_num_experts": 4,
        "moe_k": 2,
        "moe_intermediate_size": 32,
        "moe_num_shared_experts": 1,
        "moe_layer_start_index": 1,
    },
    "hunyuan_v1_moe": HEADS | {"num_experts": 4, "moe_topk": 2},
    "granitemoeshared": EXPERTS | {"shared_intermediate_size": 32},
    "mamba": {"state_size": 8, "time_step_rank": 8},
    "mamba2": HEADS | {"state_size": 16, "num_heads": 8, "n_groups": 1},
    "falcon_mamba": {"state_size": 8, "time_step_rank": 8},
    "gptj": {"rotary_dim": 8},
    "codegen": {"rotary_dim": 8},
    "mpt": {"d_model": 64, "n_heads": 4, "n_layers": 2},
    # Its heads are no setting, and its keys and values are those of all heads.
    "falcon": {},
    "bloom": {},
}
# Types that most settings above are known to.
EXPERT_TYPES = ("qwen3_moe", "qwen2_moe", "mixtral", "olmoe", "phimoe", "granitemoe", "flex_olmo")
SETTINGS |= dict.fromkeys(EXPERT_TYPES, EXPERTS)
SETTINGS |= dict.fromkeys(("minimax_m2", "exaone_moe"), EXPERTS | HEADS)
LARGEST = 5e6  # parameters


class TooLargeError(Exception):
    """A model whose configuration has other names for its sizes."""


def small_model(model_type: str) -> Any:
    """Build a causal language model of a type, with weights from a seed.

    Raises:
        TooLargeError: it would be large.
        Exception: whatever a configuration or a model raises about such sizes.
    """
    configuration = type(AutoConfig.for_model(model_type))
    config = configuration(**(SIZES | SETTINGS.get(model_type, {})))
    with torch.device("meta"):
        empty = AutoModelForCausalLM.from_config(config)
    if sum(weight.numel() for weight in empty.parameters()) > LARGEST:
        raise TooLargeError
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(config).eval()
