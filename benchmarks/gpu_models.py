"""Make models of published shapes with random weights, for gpu_check.py: nothing is downloaded.

The numbers are those of the models' `config.json`. The tokenizer is the embedded one, whose tokens
are the first of each vocabulary. In the size `tiny` the same families have two small layers.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoModelForCausalLM,
    Gemma3TextConfig,
    LlamaConfig,
    PretrainedConfig,
    Qwen2Config,
    Qwen3Config,
)

from grpo_hf.demo.tiny_model import tiny_tokenizer
from grpo_hf.planning.known_shapes import known_models

from .gpu_rows import written_whole

FULL = "full"
TINY = "tiny"

# What a benchmark of time or memory runs on, and the larger one for updates.
SMALL = "Qwen2.5-0.5B"
LARGE = "Qwen2.5-1.5B"

# The families whose numbers are compared with TRL's.
FAMILIES = (SMALL, "Qwen3-0.6B", "Llama-3.2-1B", "Gemma-3-1B")

# Attention over tokens that all look alike would hide a wrong one.
_SPREAD = {FULL: 0.02, TINY: 0.2}

_TINY_SIZES = {
    "vocab_size": 512,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 4096,
}
_TINY: dict[str, Callable[..., PretrainedConfig]] = {
    "Qwen2.5-0.5B": Qwen2Config,
    "Qwen2.5-1.5B": Qwen2Config,
    "Qwen3-0.6B": lambda **sizes: Qwen3Config(head_dim=16, **sizes),
    "Llama-3.2-1B": LlamaConfig,
    "Gemma-3-1B": lambda **sizes: Gemma3TextConfig(
        head_dim=16,
        sliding_window=16,
        layer_types=["sliding_attention", "full_attention"],
        **sizes,
    ),
}


def config_of(family: str, size: str, **changes: Any) -> PretrainedConfig:
    """Return the configuration of a family.

    Args:
        size (`str`): "full" or "tiny".
        changes: settings that differ from the published ones.
    """
    if size == TINY:
        config = _TINY[family](**(_TINY_SIZES | {"tie_word_embeddings": True} | changes))
    else:
        published = _published()[family]
        # Made anew, because what follows from the changes is computed then.
        config = type(published).from_dict(published.to_dict() | changes)
    tokenizer = tiny_tokenizer()
    config.pad_token_id = tokenizer.pad_token_id
    config.eos_token_id = tokenizer.eos_token_id
    config.bos_token_id = None
    config.initializer_range = _SPREAD[size]
    return config


def _published() -> dict[str, PretrainedConfig]:
    return known_models() | {
        "Qwen3-0.6B": Qwen3Config(
            vocab_size=151936,
            hidden_size=1024,
            intermediate_size=3072,
            num_hidden_layers=28,
            num_attention_heads=16,
            num_key_value_heads=8,
            head_dim=128,
            max_position_embeddings=40960,
            tie_word_embeddings=True,
        ),
        "Gemma-3-1B": Gemma3TextConfig(
            vocab_size=262144,
            hidden_size=1152,
            intermediate_size=6912,
            num_hidden_layers=26,
            num_attention_heads=4,
            num_key_value_heads=1,
            head_dim=256,
            query_pre_attn_scalar=256,
            sliding_window=512,
            max_position_embeddings=32768,
            tie_word_embeddings=True,
        ),
    }


def random_model(config: PretrainedConfig, dtype: torch.dtype, device: str) -> Any:
    """Return a model of that configuration, with the same random weights at every call."""
    torch.manual_seed(0)
    # Weights are drawn where they stay: on a host a billion of them takes half a minute.
    with torch.device(device):
        return AutoModelForCausalLM.from_config(config, dtype=dtype)


def checkpoint(folder: Path, family: str, size: str, dtype: torch.dtype, device: str) -> str:
    """Write model and tokenizer, if they are not there yet; return their folder."""
    path = folder / f"{family}-{size}".lower()
    if path.exists():
        return str(path)
    with written_whole(path) as unfinished:
        tokenizer = tiny_tokenizer()
        tokenizer.padding_side = "left"
        random_model(config_of(family, size), dtype, device).save_pretrained(unfinished)
        tokenizer.save_pretrained(unfinished)
    return str(path)
