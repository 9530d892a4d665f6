"""A reward model on disk: an ordinary PEFT adapter of a sequence classifier with one label, which any program can load.

    model = peft.AutoPeftModelForSequenceClassification.from_pretrained(folder, num_labels=1)
    model.config.pad_token_id = transformers.AutoTokenizer.from_pretrained(folder).pad_token_id

In memory the adapter is one of a causal language model, and its head stands beside it; these functions go from one to
the other. H hidden size.
"""

import copy
import json
from pathlib import Path
from typing import Any

from peft import (
    LoraConfig,
    PeftModel,
    get_peft_model_state_dict,
    load_peft_weights,
    set_peft_model_state_dict,
)
from safetensors.torch import save_file
from torch import nn

from ..errors import ModelError, OutputExistsError
from ..models import adapters
from ..models.loading import loading
from ..models.value_head import new_head, role_config

_HEAD = "base_model.model.score.weight"  # where PEFT keeps the head of a sequence classifier
_AS_CLASSIFIER = {"task_type": "SEQ_CLS", "modules_to_save": ["score"], "inference_mode": True}


def save(folder: Path, model: PeftModel, adapter: str, head: nn.Linear, tokenizer: Any) -> None:
    """Write the adapter, its head and the tokenizer.

    Raises:
        OutputExistsError: the folder holds something other than a reward model.
    """
    if folder.exists() and (
        not folder.is_dir() or (any(folder.iterdir()) and not _is_reward_model(folder))
    ):
        raise OutputExistsError(
            f"{folder} holds something other than a reward model, which is not overwritten. Give another folder."
        )
    folder.mkdir(parents=True, exist_ok=True)
    weights = get_peft_model_state_dict(model, adapter_name=adapter, save_embedding_layers=False)
    weights = {name: weight.detach().cpu().contiguous() for name, weight in weights.items()}
    save_file(
        weights | {_HEAD: head.weight.detach().cpu()},
        folder / "adapter_model.safetensors",
        {"format": "pt"},
    )
    config = copy.deepcopy(model.peft_config[adapter])
    for name, value in _AS_CLASSIFIER.items():
        setattr(config, name, value)
    config.save_pretrained(str(folder))
    tokenizer.save_pretrained(folder)


def load(folder: str, model: PeftModel, adapter: str) -> nn.Linear:
    """Put a saved adapter on the base under a policy, and return its head.

    Args:
        folder: on disk, or `org/name` on the Hub.

    Raises:
        ModelError: what is there is no reward model, or none of this base.
    """
    with loading("reward model", folder):
        config, weights = (
            LoraConfig.from_pretrained(folder),
            load_peft_weights(folder, device="cpu"),
        )
    head = new_head(model)
    if _HEAD not in weights:
        raise ModelError(
            f"{folder} holds an adapter without a reward model's head, as a trainer writes one beside its policy. Give "
            "the folder that RewardModel.save wrote."
        )
    found = weights.pop(_HEAD)
    if found.shape != head.weight.shape:
        raise ModelError(
            f"{folder}: the head is {tuple(found.shape)}; expected {tuple(head.weight.shape)}, that of a reward model "
            "on this base. Give the base that it was trained on."
        )
    head.weight.data.copy_(found)
    adapters.add_role(model, adapter, role_config(model, config))
    there = get_peft_model_state_dict(model, adapter_name=adapter, save_embedding_layers=False)
    shapes = [{(name, weight.shape) for name, weight in side.items()} for side in (there, weights)]
    if different := sorted(shapes[0] ^ shapes[1]):
        model.delete_adapter(adapter)
        raise ModelError(
            f"{folder}: the adapter does not fit the base: {different[0][0]} {tuple(different[0][1])} is on one side "
            "only. Give the base that it was trained on."
        )
    set_peft_model_state_dict(model, weights, adapter_name=adapter)
    return head


def _is_reward_model(folder: Path) -> bool:
    config = folder / "adapter_config.json"
    return (
        config.is_file()
        and _AS_CLASSIFIER.items() <= json.loads(config.read_text(encoding="utf-8")).items()
    )
