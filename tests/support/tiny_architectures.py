"""Tiny models of many kinds, with the layer types and options that their configurations have.

A value of class `OneOf` is drawn by the seed, so that one kind of model is built in several ways.
"""

from random import Random
from typing import Any

import torch
import transformers

LAYERS = 4
SIZES = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 128,
    # At 0.02 every token would look alike, and attention to the wrong ones would not show.
    "initializer_range": 0.2,
}


class OneOf(tuple[Any, ...]):
    """Values of a setting, of which the seed draws one."""


def _of(*values: Any) -> OneOf:
    return OneOf(values)


def _layers(*kinds: str) -> list[str]:
    """Return layer types that take turns over all layers."""
    return [kinds[index % len(kinds)] for index in range(LAYERS)]


SLIDING, FULL, LINEAR = "sliding_attention", "full_attention", "linear_attention"
WINDOWS = {
    "sliding_window": _of(4, 9),
    "layer_types": _of(_layers(SLIDING, FULL), _layers(SLIDING), _layers(FULL, FULL, SLIDING)),
}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
GATED_DELTA = {
    "layer_types": _of(_layers(LINEAR, FULL), _layers(LINEAR, LINEAR, LINEAR, FULL)),
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "linear_conv_kernel_dim": 4,
}
LATENT = {
    "q_lora_rank": _of(None, 12),
    "kv_lora_rank": 16,
    "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 4,
    "v_head_dim": 8,
    "num_key_value_heads": 4,
    "head_dim": 4,
}
ROUTED = {
    "n_routed_experts": 4,
    "n_shared_experts": 1,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 16,
    "first_k_dense_replace": 1,
}
NO_DROPOUT = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
NO_HEAD_DIM = {"head_dim": None}
MAMBA = {
    "mamba_n_heads": 4,
    "mamba_d_head": 16,
    "mamba_d_state": 8,
    "mamba_n_groups": 1,
    "mamba_chunk_size": 8,
}

# The prefix of a configuration's class, and what is set beside SIZES; None takes a size away.
ARCHITECTURES: dict[str, dict[str, Any]] = {
    "Llama": {"tie_word_embeddings": _of(True, False), "attention_bias": _of(True, False)},
    "Qwen2": {
        "use_sliding_window": _of(True, False),
        "sliding_window": 4,
        "max_window_layers": _of(0, 2),
        "head_dim": None,
    },
    "Qwen3": {"use_sliding_window": _of(True, False), "sliding_window": 4, "max_window_layers": 2},
    "Mistral": {"sliding_window": _of(None, 4, 9)},
    "Ministral": WINDOWS,
    "Phi": NO_DROPOUT | {"partial_rotary_factor": 0.5},
    "Phi3": NO_DROPOUT | {"sliding_window": _of(None, 4)},
    "Gemma": {"tie_word_embeddings": True},
    "Gemma2": WINDOWS | {"query_pre_attn_scalar": 8, "final_logit_softcapping": _of(None, 5.0)},
    "Gemma3Text": WINDOWS | {"query_pre_attn_scalar": 8},
    "VaultGemma": WINDOWS | {"query_pre_attn_scalar": 8},
    "GPT2": NO_DROPOUT
    | {"n_embd": 32, "n_layer": LAYERS, "n_head": 4, "n_positions": 128, "n_inner": 48},
    "GPTBigCode": NO_DROPOUT
    | {
        "n_embd": 32,
        "n_layer": LAYERS,
        "n_head": 4,
        "n_positions": 128,
        "n_inner": 48,
        "multi_query": _of(True, False),
    },
    "GPTNeo": {
        "num_layers": LAYERS,
        "num_heads": 4,
        "attention_types": [[["global", "local"], 2]],
        "window_size": 4,
        "num_hidden_layers": None,
        "num_attention_heads": None,
        "attention_dropout": 0.0,
        "embed_dropout": 0.0,
        "resid_dropout": 0.0,
    },
    "GPTNeoX": {"use_parallel_residual": _of(True, False), "rotary_pct": _of(0.25, 1.0)},
    "GPTJ": NO_DROPOUT
    | {"n_embd": 32, "n_layer": LAYERS, "n_head": 4, "n_positions": 128, "rotary_dim": 4},
    "CodeGen": NO_DROPOUT
    | {"n_embd": 32, "n_layer": LAYERS, "n_head": 4, "n_positions": 128, "rotary_dim": 4},
    "Bloom": {"n_layer": LAYERS, "n_head": 4, "hidden_dropout": 0.0, "attention_dropout": 0.0},
    "Mpt": {"d_model": 32, "n_heads": 4, "n_layers": LAYERS, "max_seq_len": 128},
    "OPT": {
        "ffn_dim": 48,
        "word_embed_proj_dim": _of(32, 16),
        "dropout": 0.0,
        "attention_dropout": 0.0,
    },
    "XGLM": {
        "d_model": 32,
        "ffn_dim": 48,
        "num_layers": LAYERS,
        "attention_heads": 4,
        "dropout": 0.0,
        "attention_dropout": 0.0,
    },
    "BioGpt": {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0},
    "Falcon": NO_HEAD_DIM
    | {
        "alibi": _of(True, False),
        "multi_query": _of(True, False),
        "new_decoder_architecture": _of(True, False),
        "num_kv_heads": 2,
        "hidden_dropout": 0.0,
        "attention_dropout": 0.0,
    },
    "StableLm": {"use_qkv_bias": _of(True, False), "use_parallel_residual": _of(True, False)},
    "Persimmon": {"attention_dropout": 0.0, "hidden_dropout": 0.0},
    "Starcoder2": {
        "sliding_window": _of(None, 4),
        "residual_dropout": 0.0,
        "embedding_dropout": 0.0,
        "attention_dropout": 0.0,
    },
    "Cohere": {"logit_scale": 0.5, "use_qk_norm": _of(True, False)},
    "Cohere2": WINDOWS | {"logit_scale": 0.5},
    "Granite": {
        "logits_scaling": 2.0,
        "residual_multiplier": 0.5,
        "embedding_multiplier": 3.0,
        "attention_multiplier": 0.3,
    },
    "Olmo": {"clip_qkv": _of(None, 0.5)},
    "Olmo2": {},
    "Olmo3": WINDOWS,
    "Glm": {"partial_rotary_factor": 0.5, "attention_bias": _of(True, False)},
    "Glm4": {"partial_rotary_factor": 0.5},
    "SmolLM3": {"no_rope_layers": _of([1, 1, 1, 0], [0, 1, 0, 1])} | WINDOWS,
    "Helium": {},
    "Nemotron": {"norm_eps": 1e-5},
    "Exaone4": WINDOWS,
    "SeedOss": {"attention_dropout": 0.0, "residual_dropout": 0.0},
    "Ernie4_5": {},
    "HunYuanDenseV1": {},
    "Arcee": {},
    "Apertus": {},
    "Cwm": WINDOWS | {"bos_token_id": 2},
    "NanoChat": {},
    "ModernBertDecoder": WINDOWS | {"local_attention": 8, "bos_token_id": 2},
    "BitNet": {},
    "DiffLlama": {},
    "Doge": {
        "keep_window_size": _of(4, 64),
        "sliding_window": _of(None, 4),
        "is_moe": _of(False, False, True),
        "num_experts": 16,
        "num_experts_per_tok": 4,
    },
    "Mixtral": {"num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": _of(None, 4)},
    "Qwen2Moe": EXPERTS | {"shared_expert_intermediate_size": 16, "decoder_sparse_step": _of(1, 2)},
    "Qwen3Moe": EXPERTS,
    "Olmoe": EXPERTS,
    "Phimoe": {
        "num_experts": 4,
        "num_local_experts": 4,
        "num_experts_per_tok": 2,
        "router_jitter_noise": 0.0,
        "input_jitter_noise": 0.0,
    },
    "GraniteMoe": {"num_experts": 4, "num_local_experts": 4, "num_experts_per_tok": 2},
    "GptOss": WINDOWS | {"num_local_experts": 4, "num_experts_per_tok": 2},
    "JetMoe": {
        "kv_channels": 8,
        "num_experts": 4,
        "num_local_experts": 4,
        "num_experts_per_tok": 2,
        "num_key_value_heads": 2,
        "num_attention_heads": None,
        "head_dim": None,
    },
    "DeepseekV2": LATENT | ROUTED | {"n_group": 1, "topk_group": 1, "topk_method": "greedy"},
    "DeepseekV3": LATENT | ROUTED | {"n_group": 2, "topk_group": 1},
    "MiniCPM3": LATENT | {"q_lora_rank": 12},
    "Glm4MoeLite": LATENT | ROUTED | {"q_lora_rank": 12},
    "Llama4Text": EXPERTS
    | {
        "num_local_experts": 4,
        "num_experts_per_tok": 1,
        "intermediate_size_mlp": 48,
        "attention_chunk_size": _of(4, 64),
        "no_rope_layers": [1, 0, 1, 0],
        "interleave_moe_layer_step": 2,
    },
    "Lfm2": {"layer_types": _of(_layers("conv", FULL), _layers(FULL)), "conv_L_cache": 3},
    "Lfm2Moe": EXPERTS
    | {"layer_types": _layers("conv", FULL), "conv_L_cache": 3, "num_dense_layers": 1},
    "Qwen3_5Text": GATED_DELTA,
    "Qwen3_5MoeText": GATED_DELTA | EXPERTS | {"shared_expert_intermediate_size": 16},
    "Qwen3Next": GATED_DELTA | EXPERTS | {"shared_expert_intermediate_size": 16},
    "OlmoHybrid": GATED_DELTA,
    "MiniMax": {
        "layer_types": _layers(LINEAR, FULL),
        "num_local_experts": 4,
        "num_experts_per_tok": 2,
        "block_size": 8,
    },
    "RecurrentGemma": {
        "lru_width": 32,
        "attention_window_size": 8,
        "num_key_value_heads": 1,
        "block_types": ["recurrent", "attention"],
    },
    "Jamba": {
        "attn_layer_period": 2,
        "attn_layer_offset": 1,
        "expert_layer_period": 2,
        "num_experts": 4,
        "use_mamba_kernels": False,
        "mamba_d_state": 8,
    },
    "Bamba": MAMBA | {"attn_layer_indices": [1, 3]},
    "GraniteMoeHybrid": MAMBA
    | {
        "layer_types": _layers("mamba", "attention"),
        "num_experts": 4,
        "num_local_experts": 4,
        "num_experts_per_tok": 2,
        "shared_intermediate_size": 16,
    },
    "FalconH1": MAMBA | {"mamba_d_ssm": 64},
    "NemotronH": {
        "hybrid_override_pattern": "M*-M",
        "mamba_num_heads": 4,
        "mamba_head_dim": 8,
        "ssm_state_size": 8,
        "n_groups": 1,
        "chunk_size": 8,
    },
    "Mamba": {"state_size": 4, "use_mambapy": False},
    "Mamba2": {
        "state_size": 8,
        "num_heads": 8,
        "head_dim": 8,
        "n_groups": 1,
        "chunk_size": 8,
        "expand": 2,
    },
    "FalconMamba": {"state_size": 4, "use_mambapy": False},
}


def draw_options(architecture: str, random: Random) -> dict[str, Any]:
    """Return the settings of one model of a kind, beside SIZES."""
    options = {}
    for name, value in ARCHITECTURES[architecture].items():
        options[name] = random.choice(value) if isinstance(value, OneOf) else value
    return options


def tiny(architecture: str, options: dict[str, Any], tokenizer: Any, seed: int = 0) -> Any:
    """Return a causal language model of random weights for a tokenizer."""
    settings = SIZES | {
        "vocab_size": len(tokenizer),
        "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": None,
        "eos_token_id": tokenizer.eos_token_id,
    }
    for name, value in options.items():
        if value is None:
            settings.pop(name, None)
        # A size that is taken away is the configuration's own; elsewhere None is a value.
        if value is not None or name not in SIZES:
            settings[name] = value
    torch.manual_seed(seed)
    config = getattr(transformers, f"{architecture}Config")(**settings)
    return transformers.AutoModelForCausalLM.from_config(config)
