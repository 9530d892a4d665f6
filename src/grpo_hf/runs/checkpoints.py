"""The policy on disk: a PEFT adapter of a causal language model, and a trainer's checkpoints."""

import json
import shutil
from pathlib import Path
from typing import Any
from zipfile import is_zipfile

from accelerate import PartialState
from peft import PeftModel, load_peft_weights, set_peft_model_state_dict
from transformers.trainer_utils import get_last_checkpoint

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


def whole_checkpoint(folder: Path) -> str | None:
    """Return the newest complete checkpoint, or None, and remove incomplete checkpoints.

    A process that was killed while it saved leaves an incomplete checkpoint, which
    `get_last_checkpoint` would return although nothing can resume from it. Where no checkpoint is
    left, the folder itself is removed, so that a run can begin there.
    """
    state = PartialState()
    if state.is_main_process:
        for checkpoint in folder.glob("checkpoint-*"):
            if not _is_whole(checkpoint, state.num_processes):
                shutil.rmtree(checkpoint)
        if not any(folder.glob("checkpoint-*")):
            shutil.rmtree(folder, ignore_errors=True)
    # Other processes must not look before the main process has removed what is incomplete.
    state.wait_for_everyone()
    return get_last_checkpoint(str(folder)) if folder.is_dir() else None


def is_at_its_end(checkpoint: str) -> bool:
    """Whether a checkpoint was written after the last step of its run.

    From such a checkpoint transformers 5.23 would train one more step.
    """
    state = _trainer_state(Path(checkpoint))
    return state["global_step"] >= state["max_steps"]


def _is_whole(checkpoint: Path, processes: int) -> bool:
    """Whether a checkpoint was written to its end by all processes.

    transformers 5.23 writes the trainer's state last in the main process. Each process also writes
    its random state, a zip file, whose index is at the end.
    """
    try:
        _trainer_state(checkpoint)
    except (OSError, ValueError):
        # The state is missing, or it is JSON that ends too early.
        return False
    random_states = 0
    for file in checkpoint.glob("rng_state*.pth"):
        # A zip file that was cut off has no index, and so it does not count.
        random_states += is_zipfile(file)
    return random_states == processes


def _trainer_state(checkpoint: Path) -> dict[str, Any]:
    return json.loads((checkpoint / "trainer_state.json").read_text(encoding="utf-8"))
