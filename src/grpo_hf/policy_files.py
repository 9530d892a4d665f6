"""The policy on disk: an ordinary PEFT adapter of a causal language model."""

from pathlib import Path

from accelerate import PartialState
from peft import PeftModel, load_peft_weights, set_peft_model_state_dict

from .base import loading
from .errors import ModelError


def save_policy(model: PeftModel, folder: Path) -> None:
    """Write the adapter `default` alone, whatever others there are; from the main process."""
    if PartialState().is_main_process:
        model.save_pretrained(str(folder), selected_adapters=["default"])
    PartialState().wait_for_everyone()


def load_policy(model: PeftModel, folder: Path) -> None:
    """Give the adapter `default` the weights of a saved one.

    Raises:
        ModelError: the folder holds no adapter, or one of other layers.
    """
    with loading("policy", str(folder)):
        weights = load_peft_weights(str(folder), device="cpu")
    found = set_peft_model_state_dict(model, weights, adapter_name="default")
    missing = [name for name in found.missing_keys if ".default." in name]
    if missing or found.unexpected_keys:
        different = [*missing, *found.unexpected_keys][0]
        raise ModelError(f"{folder}: the adapter does not fit the policy: {different} is on one side only.")
