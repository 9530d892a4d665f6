"""A reward model on disk: a PEFT adapter of a sequence classifier with one label.

Any program can load this ordinary format:

    model = peft.AutoPeftModelForSequenceClassification.from_pretrained(folder, num_labels=1)
    model.config.pad_token_id = transformers.AutoTokenizer.from_pretrained(folder).pad_token_id

In memory, the adapter belongs to a causal language model, and its head stands beside it. These
functions translate between the two. H hidden size.
"""

import copy
import json
from pathlib import Path
from typing import Any

import torch
from peft import (
    LoraConfig,
    PeftModel,
    get_peft_model_state_dict,
    load_peft_weights,
    set_peft_model_state_dict,
)
from safetensors.torch import save_file
from torch import Tensor, nn

from ..errors import ModelError, OutputExistsError
from ..models import adapters
from ..models.loading import loading
from ..models.value_head import new_head, role_config

# PEFT keeps the head of a sequence classifier under this name.
_HEAD = "base_model.model.score.weight"
# The settings that make the adapter's configuration that of a classifier.
_AS_CLASSIFIER = {"task_type": "SEQ_CLS", "modules_to_save": ["score"], "inference_mode": True}


def save(folder: Path, model: PeftModel, adapter: str, head: nn.Linear, tokenizer: Any) -> None:
    """Write the adapter, its head and the tokenizer.

    Raises:
        OutputExistsError: the folder holds something other than a reward model.
    """
    if not _may_be_written(folder):
        raise OutputExistsError(
            f"{folder} holds something other than a reward model, which is not overwritten. Give "
            "another folder."
        )
    folder.mkdir(parents=True, exist_ok=True)
    weights = _adapter_weights(model, adapter)
    for name, weight in weights.items():
        # safetensors writes only contiguous tensors.
        weights[name] = weight.detach().cpu().contiguous()
    weights[_HEAD] = head.weight.detach().cpu()
    save_file(weights, folder / "adapter_model.safetensors", {"format": "pt"})
    # A copy: the adapter in memory stays one of a language model.
    config = copy.deepcopy(model.peft_config[adapter])
    for name, value in _AS_CLASSIFIER.items():
        setattr(config, name, value)
    config.save_pretrained(str(folder))
    tokenizer.save_pretrained(folder)


def load(folder: str, model: PeftModel, adapter: str) -> nn.Linear:
    """Put a saved adapter on the base under a policy, and return its head.

    Args:
        folder: on disk, or `org/name` on the Hub.
        model: the base with the policy.
        adapter: the name of the new adapter.

    Raises:
        ModelError: the folder holds no reward model, or one of another base.
    """
    with loading("reward model", folder):
        config = LoraConfig.from_pretrained(folder)
        weights = load_peft_weights(folder, device="cpu")
    head = new_head(model)
    if _HEAD not in weights:
        raise ModelError(
            f"{folder} holds an adapter without a reward model's head, as a trainer writes one "
            "beside its policy. Give the folder that RewardModel.save wrote."
        )
    head_weight = weights.pop(_HEAD)
    if head_weight.shape != head.weight.shape:
        raise ModelError(
            f"{folder}: the head is {tuple(head_weight.shape)}; expected "
            f"{tuple(head.weight.shape)}, that of a reward model on this base. Give the base that "
            "it was trained on."
        )
    head.weight.data.copy_(head_weight)
    adapters.add_role(model, adapter, role_config(model, config))
    # PEFT would skip a weight whose name it does not know, without an error.
    different = sorted(_shapes(_adapter_weights(model, adapter)) ^ _shapes(weights))
    if different:
        # A failed load leaves no adapter behind.
        model.delete_adapter(adapter)
        name, shape = different[0]
        raise ModelError(
            f"{folder}: the adapter does not fit the base: {name} {tuple(shape)} is on one side "
            "only. Give the base that it was trained on."
        )
    set_peft_model_state_dict(model, weights, adapter_name=adapter)
    return head


def _adapter_weights(model: PeftModel, adapter: str) -> dict[str, Tensor]:
    # The embeddings belong to the base; by default PEFT adds them where it takes them for changed.
    return get_peft_model_state_dict(model, adapter_name=adapter, save_embedding_layers=False)


def _shapes(weights: dict[str, Tensor]) -> set[tuple[str, torch.Size]]:
    return {(name, weight.shape) for name, weight in weights.items()}


def _may_be_written(folder: Path) -> bool:
    """Return whether the folder is new, empty, or holds a reward model."""
    if not folder.exists():
        return True
    if not folder.is_dir():
        return False
    return not any(folder.iterdir()) or _is_reward_model(folder)


def _is_reward_model(folder: Path) -> bool:
    config = folder / "adapter_config.json"
    if not config.is_file():
        return False
    settings = json.loads(config.read_text(encoding="utf-8"))
    # A policy's adapter lies in a folder of the same form, and is no reward model.
    return _AS_CLASSIFIER.items() <= settings.items()
