"""The policy on disk: an ordinary PEFT adapter of a causal language model, and a trainer's checkpoints of it."""

import json
import shutil
from pathlib import Path
from typing import Any
from zipfile import is_zipfile

from accelerate import PartialState
from peft import PeftModel, load_peft_weights, set_peft_model_state_dict
from transformers.trainer_utils import get_last_checkpoint

from ..models.loading import loading
from ..errors import ModelError


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
        raise ModelError(
            f"{folder}: the adapter does not fit the policy: {different} is on one side only."
        )


def whole_checkpoint(folder: Path) -> str | None:
    """The newest checkpoint that was written to its end. Those that a kill left unfinished are removed.

    Without any the folder is removed, so that a run can begin there. `get_last_checkpoint` alone would name a folder
    that nothing can resume from.
    """
    state = PartialState()
    if state.is_main_process:
        for checkpoint in folder.glob("checkpoint-*"):
            if not _is_whole(checkpoint, state.num_processes):
                shutil.rmtree(checkpoint)
        if not any(folder.glob("checkpoint-*")):
            shutil.rmtree(folder, ignore_errors=True)
    state.wait_for_everyone()
    return get_last_checkpoint(str(folder)) if folder.is_dir() else None


def is_at_its_end(checkpoint: str) -> bool:
    """Whether a checkpoint is of a run's last step; transformers 5.23 would train one more."""
    state = _trainer_state(Path(checkpoint))
    return state["global_step"] >= state["max_steps"]


def _is_whole(checkpoint: Path, processes: int) -> bool:
    """transformers 5.23 writes the trainer's state last, and each process its random numbers, which end in an index."""
    try:
        _trainer_state(checkpoint)
    except (OSError, ValueError):
        return False
    return sum(map(is_zipfile, checkpoint.glob("rng_state*.pth"))) == processes


def _trainer_state(checkpoint: Path) -> dict[str, Any]:
    return json.loads((checkpoint / "trainer_state.json").read_text(encoding="utf-8"))
