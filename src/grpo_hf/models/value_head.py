"""A scalar head on the frozen base, and the adapter that it is read through: for reward models and critics.

H hidden size.
"""

import copy

import torch
from peft import LoraConfig, PeftModel
from torch import nn

from ..errors import ModelError
from .adapters import causal_model


def new_head(model: PeftModel) -> nn.Linear:
    """A scalar head in float32 from N(0, 1/(H + 1)) (arXiv 2009.01325, appendix B.1)."""
    size = causal_model(model).config.get_text_config().hidden_size
    head = nn.Linear(size, 1, bias=False, dtype=torch.float32)
    nn.init.normal_(head.weight, std=(size + 1) ** -0.5)
    return head


def role_config(model: PeftModel, lora: LoraConfig | None = None) -> LoraConfig:
    """The configuration of another LoRA adapter on the policy's base; by default the layers and rank of the policy's.

    Raises:
        ModelError: the policy is no LoRA adapter, and PEFT takes one kind of adapter on a model.
    """
    policy = getattr(model, "peft_config", {}).get(getattr(model, "active_adapter", None))
    if not isinstance(policy, LoraConfig):
        raise ModelError(
            f"a reward model is a LoRA adapter beside the policy's on one base, and came to {type(model).__name__} "
            f"with {type(policy).__name__}. Give get_peft_model(base, LoraConfig(...))."
        )
    config = copy.deepcopy(lora or policy)
    config.modules_to_save, config.bias, config.trainable_token_indices = None, "none", None
    if lora is None:
        config.init_lora_weights = True
        if not isinstance(config.target_modules, str | None):  # a classifier has no head for tokens
            config.target_modules = {*config.target_modules} - {"lm_head", "embed_out"}
    config.base_model_name_or_path = policy.base_model_name_or_path
    return config
