"""Configurations of well-known models, to plan for them without a download.

They are the numbers of their published `config.json`.
"""

from typing import Any

from transformers import LlamaConfig, PretrainedConfig, Qwen2Config

_QWEN = {"vocab_size": 151936, "max_position_embeddings": 32768}
_LLAMA = {"vocab_size": 128256, "num_key_value_heads": 8, "max_position_embeddings": 131072}


def known_models() -> dict[str, PretrainedConfig]:
    """Return the configurations by the models' names, the smallest first."""
    return {
        "Qwen2.5-0.5B": _qwen(896, 4864, 24, 14, 2),
        "Llama-3.2-1B": _llama(2048, 8192, 16, 32, head_dim=64, tie_word_embeddings=True),
        "Qwen2.5-1.5B": _qwen(1536, 8960, 28, 12, 2),
        "Qwen2.5-3B": _qwen(2048, 11008, 36, 16, 2),
        "Llama-3.2-3B": _llama(3072, 8192, 28, 24, head_dim=128, tie_word_embeddings=True),
        "Qwen2.5-7B": _qwen(3584, 18944, 28, 28, 4, tied=False, vocab_size=152064),
        "Llama-3.1-8B": _llama(4096, 14336, 32, 32),
        "Qwen2.5-14B": _qwen(5120, 13824, 48, 40, 8, tied=False, vocab_size=152064),
        "Qwen2.5-32B": _qwen(5120, 27648, 64, 40, 8, tied=False, vocab_size=152064),
        "Llama-3.1-70B": _llama(8192, 28672, 80, 64),
        "Qwen2.5-72B": _qwen(8192, 29568, 80, 64, 8, tied=False, vocab_size=152064),
    }


def _qwen(
    width: int,
    inner: int,
    layers: int,
    heads: int,
    key_heads: int,
    *,
    tied: bool = True,
    **others: Any,
) -> PretrainedConfig:
    return Qwen2Config(
        hidden_size=width,
        intermediate_size=inner,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=key_heads,
        tie_word_embeddings=tied,
        **(_QWEN | others),
    )


def _llama(width: int, inner: int, layers: int, heads: int, **others: Any) -> PretrainedConfig:
    return LlamaConfig(
        hidden_size=width,
        intermediate_size=inner,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        **(_LLAMA | others),
    )
