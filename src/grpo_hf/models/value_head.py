"""The parts of a reward model or a critic on the frozen base: a scalar head, and an adapter.

H hidden size.
"""

import copy

import torch
from peft import LoraConfig, PeftModel
from torch import nn

from ..errors import ModelError
from .adapters import causal_model


def new_head(model: PeftModel) -> nn.Linear:
    """Return a scalar head in float32 with weights from N(0, 1/(H + 1)).

    Source: arXiv 2009.01325, appendix B.1.
    """
    size = causal_model(model).config.get_text_config().hidden_size
    head = nn.Linear(size, 1, bias=False, dtype=torch.float32)
    nn.init.normal_(head.weight, std=(size + 1) ** -0.5)
    return head


def role_config(model: PeftModel, lora: LoraConfig | None = None) -> LoraConfig:
    """Return the configuration of another LoRA adapter on the policy's base.

    Args:
        model: the base with the policy.
        lora: the configuration to start from; by default the policy's, with its layers and rank.

    Raises:
        ModelError: the policy is no LoRA adapter. PEFT takes adapters of one kind on a model.
    """
    policy = getattr(model, "peft_config", {}).get(getattr(model, "active_adapter", None))
    if not isinstance(policy, LoraConfig):
        raise ModelError(
            "a reward model is a LoRA adapter beside the policy's on one base, and came to "
            f"{type(model).__name__} with {type(policy).__name__}. Give get_peft_model(base, "
            "LoraConfig(...))."
        )
    config = copy.deepcopy(lora or policy)
    # These three train weights beside LoRA's own, which the policy may train as well.
    config.modules_to_save = None
    config.bias = "none"
    config.trainable_token_indices = None
    if lora is None:
        # The policy's initialisation may be another, or one that changes the base. This one starts
        # as a no-op.
        config.init_lora_weights = True
        # A classifier has no head for tokens. A pattern or a shorthand such as "all-linear" stays.
        if not isinstance(config.target_modules, str | None):
            config.target_modules = {*config.target_modules} - {"lm_head", "embed_out"}
    config.base_model_name_or_path = policy.base_model_name_or_path
    return config
