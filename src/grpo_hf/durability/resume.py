"""Where a run goes on: the newest whole checkpoint of its folder, if it is one of this run.

`train(resume_from_checkpoint=...)` and `--resume_from_checkpoint` take

    auto    the newest whole checkpoint; a new run where there is none: for a loop that restarts
    true    the newest whole checkpoint
    PATH    this one
"""

import hashlib
import json
import logging
import re
from collections.abc import Sized
from pathlib import Path
from typing import Any

from accelerate.utils import gather_object
from datasets import Dataset

from ..errors import ConfigError
from ..run_files import say, warn_once
from . import whole_checkpoints

logger = logging.getLogger(__name__)

TRUE, AUTO = "true", "auto"
# A run with another value of one of these is another run from the next step on.
_SETTINGS = (
    *("per_device_train_batch_size", "gradient_accumulation_steps", "num_generations"),
    *("steps_per_generation", "num_iterations", "shuffle_dataset", "seed", "data_seed"),
)
# How the names of settings begin that change nothing of what is learned, and those of its length.
_APART = (
    *("output_dir", "run_name", "report_to", "logging", "log_", "disable_tqdm", "save", "eval_"),
    *("hub_", "push_", "resume_", "dataloader_", "reward_workers", "reward_timeout", "use_cpu"),
    *("max_steps", "num_train_epochs", "local_rank"),
)
# Of an adapter's configuration: what another load of the same adapter may have otherwise.
_ADAPTER_APART = {
    *("auto_mapping", "base_model_name_or_path", "corda_config", "eva_config", "inference_mode"),
    *("init_lora_weights", "loftq_config", "lora_dropout", "peft_version", "revision"),
    *("runtime_config", "task_type"),
}
# Of what is no setting, by which settings it comes to be another.
_WHY = {"data": " (by the data itself, --dataset_path, --eval_rows, --columns or --seed)"}
_RATE = ("learning_rate", "lr_scheduler", "warmup")
# The rows of a dataset by which it is known again.
_ROWS = 4


def wish_of(resume: str | bool | None) -> str:
    """Return what is asked for: `TRUE`, `AUTO`, a path, or nothing for a new run."""
    # From a flag the setting is text, from YAML it may be a boolean.
    text = str(resume or "")
    return {"false": "", TRUE: TRUE, AUTO: AUTO}.get(text.lower(), text)


def settings_of(args: Any, dataset: Any, model: Any) -> dict[str, Any]:
    """Return what decides the future of a run, beside its state; JSON can hold it.

    Args:
        model: the policy, unwrapped.
    """
    settings = {name: getattr(args, name) for name in _SETTINGS}
    settings |= {"processes": args.world_size, "data": _known_by(dataset)}
    settings |= {"adapter": _adapter_of(model), "others": _others(args)}
    return settings | {"save_only_model": args.save_only_model}


def _adapter_of(model: Any) -> dict[str, Any]:
    """Return the configuration of a policy's adapter, as far as its weights depend on it."""
    config = getattr(model, "active_peft_config", None)
    fields = {} if config is None else config.to_dict()
    kept = {name: value for name, value in fields.items() if name not in _ADAPTER_APART}
    return _as_json(kept)


def _others(args: Any) -> dict[str, Any]:
    """Return the settings that may be other ones when a run goes on, which is said then."""
    kept = {}
    for name, value in args.to_dict().items():
        if not name.startswith(_APART) and name not in _SETTINGS:
            kept[name] = value
    return _as_json(kept)


def _as_json(value: Any) -> Any:
    """Return settings as JSON gives them back, and objects in them as texts without addresses."""

    def plain(other: Any) -> Any:
        if isinstance(other, set):
            return sorted(map(str, other))
        return re.sub(r" at 0x[0-9a-f]+", "", str(other))

    return json.loads(json.dumps(value, default=plain, skipkeys=True))


def checkpoint_for(
    folder: Path,
    resume: str | bool | None,
    accelerator: Any = None,
    *,
    has_begun: bool = False,
) -> Path | None:
    """Return the checkpoint that a run goes on from, or None for a new run.

    Args:
        folder: of the run.
        resume: as given; see above.
        accelerator: of a run that begins now and holds its folder: the first process finishes what
            a killed one left, and all processes go on from the same checkpoint. None: a program
            only looks, before it loads a model.
        has_begun: whether a run has begun in the folder before. Where it has saved nothing, it is
            said that it begins again.

    Raises:
        ConfigError: there is no such checkpoint, or it is not whole.
    """
    wish = wish_of(resume)
    if not wish:
        return None
    if accelerator is not None:
        if accelerator.is_main_process:
            whole_checkpoints.recover(folder)
        accelerator.wait_for_everyone()
    # A program checks this before it loads a model; the trainer says it.
    speaks = accelerator is not None and accelerator.is_main_process
    if wish not in (TRUE, AUTO):
        named = _named(Path(wish))
        if speaks:
            say(f"going on from {named}")
        return named
    found = _found_by_all(folder, accelerator)
    if accelerator is None or accelerator.is_main_process:
        for checkpoint, reason in found.skipped.items():
            warn_once(f"{checkpoint} is not whole ({reason}), and is left out.")
    if found.newest is None and wish == TRUE:
        torn = f" ({len(found.skipped)} are not whole)" if found.skipped else ""
        raise ConfigError(
            f"{folder} holds no checkpoint to resume from{torn}. Remove the folder or give another "
            "--output_dir, leave --resume_from_checkpoint out, and set --save_steps below the "
            "number of steps to have checkpoints."
        )
    if found.newest is not None and speaks:
        say(f"going on from {found.newest}")
    elif found.skipped and speaks:
        logger.warning(f"No checkpoint in {folder} is whole, so the run begins anew, at step 1.")
    elif has_begun and found.newest is None and speaks:
        say(f"{folder} has no checkpoint yet: its run begins again at step 1.")
    return found.newest


def goes_on_as_it_was(checkpoint: Path, settings: dict[str, Any], *, insists: bool) -> bool:
    """Return whether a run goes on from a checkpoint as it was, with the settings of then.

    Args:
        settings: of this run.
        insists: whether the user goes on all the same: then it is said.

    Raises:
        ConfigError: it does not, and the user has not insisted; the message names what differs.
    """
    manifest = whole_checkpoints.manifest_of(checkpoint)
    if manifest is None:
        logger.warning(
            f"{checkpoint} was written by another program: whether its settings are those of this "
            "run, and what it has not kept, nobody can say."
        )
        return True
    saved = manifest["settings"]
    differences = []
    if saved.get("save_only_model"):
        differences.append("it holds the weights alone (save_only_model)")
    parts = {name: settings[name] for name in settings if name not in ("adapter", "others")}
    differences += _differences(parts, saved)
    of_adapter = _differences(settings["adapter"], saved.get("adapter", {}), "the adapter's ")
    _say_others(checkpoint, settings["others"], saved.get("others", {}))
    if not differences and not of_adapter:
        return True
    what = "; ".join(sorted(differences + of_adapter))
    if of_adapter:
        raise ConfigError(
            f"{checkpoint} holds another adapter than this run's: {what}. Give the settings that "
            "it was written with, or begin a new run in another --output_dir."
        )
    if not insists:
        raise ConfigError(
            f"{checkpoint} does not go on as it was: {what}. Give the settings that it was written "
            "with, or --resume_changed true to go on from it all the same."
        )
    logger.warning(
        f"Going on from {checkpoint}, and not as it was: {what}. What was left of its rollout and "
        "of its order of the data is not taken up."
    )
    return False


def _differences(now: dict[str, Any], then: dict[str, Any], owner: str = "") -> list[str]:
    found = []
    for name in now.keys() & then.keys() - {"save_only_model"}:
        if now[name] != then[name]:
            found.append(f"{owner}{name} is {now[name]} and was {then[name]}{_WHY.get(name, '')}")
    return found


def _say_others(checkpoint: Path, now: dict[str, Any], then: dict[str, Any]) -> None:
    """Say which settings are other ones than those of a checkpoint, without being refused."""
    differences = sorted(_differences(now, then))
    if not differences:
        return
    # The optimizer and its schedule come with the checkpoint.
    has_rate = any(each.startswith(_RATE) for each in differences)
    rate = " The learning rate stays the checkpoint's." if has_rate else ""
    logger.warning(
        f"Going on from {checkpoint} with other settings than before: {'; '.join(differences)}."
        f"{rate}"
    )


def is_at_its_end(checkpoint: Path, args: Any) -> bool:
    """Return whether a checkpoint was written after the last step of a run.

    From such a checkpoint transformers 5.23 would train one more step.

    Args:
        args: of the run that goes on; its `max_steps` is not above 0 where its length is given in
            epochs.
    """
    state = json.loads((checkpoint / "trainer_state.json").read_text(encoding="utf-8"))
    if args.max_steps > 0:
        return state["global_step"] >= args.max_steps
    # The run may have more epochs now than it had then.
    is_longer = args.num_train_epochs > state["num_train_epochs"]
    return state["global_step"] >= state["max_steps"] and not is_longer


def _found_by_all(folder: Path, accelerator: Any) -> whole_checkpoints.Found:
    """Return the newest checkpoint that is whole for every process.

    Machines without a common disk have a part each, and one of two processes may meet a bad block:
    from different checkpoints they would train on as if nothing were wrong.
    """
    found = whole_checkpoints.find(folder)
    skipped = found.skipped
    while accelerator is not None and accelerator.num_processes > 1:
        here = -1 if found.newest is None else whole_checkpoints.step_of(found.newest)
        steps = gather_object([here])
        if min(steps) == max(steps):
            break
        if found.newest is not None and here > min(steps):
            skipped[found.newest] = f"for process {steps.index(min(steps))}"
        found = whole_checkpoints.find(folder, most=min(steps))
        skipped |= found.skipped
    return whole_checkpoints.Found(found.newest, skipped)


def _named(checkpoint: Path) -> Path:
    reason = whole_checkpoints.why_not_whole(checkpoint)
    if not reason:
        return checkpoint
    newest = whole_checkpoints.find(checkpoint.parent).newest
    advice = (
        f"The newest whole one beside it is {newest}." if newest else "None beside it is whole."
    )
    raise ConfigError(f"--resume_from_checkpoint {checkpoint}: {reason}. {advice}")


def _known_by(dataset: Any) -> str | None:
    """Return a text by which a dataset is known again: how many rows, and what the first say."""
    if not isinstance(dataset, Sized):
        return None
    if not isinstance(dataset, Dataset):
        return f"{len(dataset)} rows"
    # As they are stored: a transform may draw another row each time.
    stored = dataset.with_format(None)
    rows = [stored[index] for index in range(min(_ROWS, len(stored)))]
    text = json.dumps(rows, default=lambda value: type(value).__name__, sort_keys=True)
    return f"{len(dataset)} rows, {hashlib.sha256(text.encode()).hexdigest()[:12]}"
