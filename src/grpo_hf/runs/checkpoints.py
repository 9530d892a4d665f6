"""The policy on disk: a PEFT adapter of a causal language model, and a trainer's checkpoints."""

import shutil
from pathlib import Path

from accelerate import PartialState
from peft import PeftModel, load_peft_weights, set_peft_model_state_dict

from ..errors import ModelError
from ..models.kept_weights import role_weights
from ..models.loading import loading


def save_policy(model: PeftModel, folder: Path) -> None:
    """Write the policy's adapter and no other; only the main process writes."""
    if PartialState().is_main_process:
        # PEFT saves every adapter unless told otherwise, and a reward model may be one of them.
        model.save_pretrained(str(folder), selected_adapters=[model.active_adapter])
    PartialState().wait_for_everyone()


def load_policy(model: PeftModel, folder: Path) -> None:
    """Give the policy's adapter the weights of a saved adapter.

    Raises:
        ModelError: the folder holds no adapter, or an adapter of other layers.
    """
    adapter = model.active_adapter
    # PEFT writes an adapter of another name into a folder of that name.
    saved = folder if adapter == "default" else folder / adapter
    with loading("policy", str(saved)):
        weights = load_peft_weights(str(saved), device="cpu")
    result = set_peft_model_state_dict(model, weights, adapter_name=adapter)
    # PEFT reports every weight that the file lacks, also those of the base and of other adapters.
    mismatches = sorted(role_weights(model, adapter).keys() & set(result.missing_keys))
    mismatches.extend(result.unexpected_keys)
    if mismatches:
        raise ModelError(
            f"{folder}: the adapter does not fit the policy: {mismatches[0]} is on one side only."
        )


def clear_without_checkpoint(folder: Path) -> None:
    """Remove a folder in which an interrupted phase has left no checkpoint to go on from."""
    state = PartialState()
    if state.is_main_process and not any(folder.glob("checkpoint-*")):
        shutil.rmtree(folder, ignore_errors=True)
    # Other processes must not look before the main process has removed it.
    state.wait_for_everyone()
