"""The former place of `grpo_hf.demo.tiny_model`, for scripts of the first release."""

import warnings

from .demo.tiny_model import CHAT_TEMPLATE, tiny_model, tiny_tokenizer

__all__ = ["CHAT_TEMPLATE", "tiny_model", "tiny_tokenizer"]

warnings.warn(
    "grpo_hf.tiny_model has moved to grpo_hf.demo.tiny_model; import it from there.",
    DeprecationWarning,
    stacklevel=2,
)
