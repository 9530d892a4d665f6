"""Checks of where a run's results go: a free output folder, a checkpoint to resume, the Hub."""

import math
import os
from pathlib import Path

import yaml

from ..config import GRPOConfig
from ..durability.output_folder import claim_output_folder, end_of
from ..durability.resume import AUTO, TRUE, checkpoint_for, is_at_its_end, wish_of
from ..durability.whole_checkpoints import find, recover, step_of
from ..errors import ConfigError, HubUnreachable, OutputExistsError
from ..run_files import RECIPE_FILE
from ..run_folders import settings_of
from .recipe import Recipe

# Steps of a run that is a trial.
_FEW_STEPS = 10
# Settings that are named where two recipes differ.
_NAMED = 4


def checkpoint_to_resume(recipe: Recipe) -> str | None:
    """Return what a trainer is told to resume from, None for a new run into a free folder.

    The newest checkpoint is looked for by the first process; the others take its word.

    Raises:
        ConfigError: there is no such checkpoint, or its run has finished.
        OutputExistsError: the output folder holds a run already.
    """
    folder = Path(recipe.training.output_dir)
    wish = recipe.training.resume_from_checkpoint
    try:
        claim_output_folder(folder, resume=wish)
    except OutputExistsError as error:
        raise OutputExistsError(f"{error}{_what_differs(recipe, folder)}") from error
    # In a loop that restarts, the end of a run is no mistake: what comes after it may be left.
    if wish_of(wish) == AUTO:
        return AUTO
    if wish_of(wish) == TRUE:
        # It holds the folder, so nobody else is writing what lies there unfinished.
        if os.environ.get("RANK", "0") != "0":
            return TRUE
        recover(folder)
    checkpoint = checkpoint_for(folder, wish)
    if checkpoint is None:
        return None
    if is_at_its_end(checkpoint, recipe.training):
        most = recipe.training.max_steps
        length = f"step {step_of(checkpoint)} of {most}" if most > 0 else "the end of its epochs"
        raise ConfigError(
            f"{checkpoint} is at {length}: the run has finished. Give a larger "
            f"{'--max_steps' if most > 0 else '--num_train_epochs'} to go on."
        )
    return TRUE if wish_of(wish) == TRUE else str(checkpoint)


def _what_differs(recipe: Recipe, folder: Path) -> str:
    """Return a sentence on how a recipe differs from that of the run in a folder, if it has one."""
    there = settings_of(folder)
    if not there:
        return ""
    here = yaml.safe_load(recipe.saved_in(folder))
    differing = []
    for name in sorted(there.keys() | here.keys()):
        # What was chosen for a run is written out with what was given, and depends on the model.
        if name in recipe.given and there.get(name) != here.get(name):
            differing.append(f"{name} is {here.get(name)} and was {there.get(name)}")
    if not differing:
        return " It is the run of these same settings."
    more = f", and {len(differing) - _NAMED} more" if len(differing) > _NAMED else ""
    return f" That run has other settings: {'; '.join(differing[:_NAMED])}{more}."


def first_checkpoint(args: GRPOConfig) -> str:
    """Return a sentence that says when a run saves for the first time."""
    if args.save_strategy == "no":
        return "no checkpoints are saved (save_strategy), so a run that is killed starts again."
    if args.save_strategy != "steps":
        return f"the first checkpoint is saved as save_strategy says: {args.save_strategy.value}."
    most, every = args.max_steps, args.save_steps
    # A share of all steps, rounded as transformers rounds it.
    first = math.ceil(every * most) if 0 < every < 1 and most > 0 else every
    if 0 < most <= first:
        said = f"the first checkpoint is saved at the end, step {most}"
        # A trial of a few steps has nothing to save on the way.
        if most < _FEW_STEPS:
            return f"{said}."
        return f"{said}, because save_steps is {every:g}. A smaller --save_steps saves on the way."
    if first < 1:
        return f"the first checkpoint is saved after {first:.0%} of the steps (save_steps)."
    end = "" if most > 0 else ", or at the end of a shorter run"
    return f"the first checkpoint is saved at step {first:g} (save_steps){end}."


def step_of_its_end(recipe: Recipe) -> int | None:
    """Return the step at which the run that `auto` would go on with is over; None if it is not.

    It is over where all was done that this recipe asks for: training, comparison, card and push.
    """
    folder = Path(recipe.training.output_dir)
    end = end_of(folder)
    if wish_of(recipe.training.resume_from_checkpoint) != AUTO or end is None:
        return None
    # Machines without a common disk would not agree.
    if os.environ.get("WORLD_SIZE", "1") != os.environ.get("LOCAL_WORLD_SIZE", "1"):
        return None
    checkpoint = find(folder).newest
    if checkpoint is None or step_of(checkpoint) != end:
        return None
    try:
        is_same = (folder / RECIPE_FILE).read_text(encoding="utf-8") == recipe.saved_in(folder)
    except (OSError, ValueError):
        return None
    return end if is_same and is_at_its_end(checkpoint, recipe.training) else None


def check_hub_login(recipe: Recipe) -> None:
    """Check that the Hub accepts the user's token before hours of training.

    Raises:
        ConfigError: there is no token, or the Hub refuses it.
        HubUnreachable: the Hub does not answer.
    """
    # Only runs that push to the Hub need its client.
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, LocalTokenNotFoundError

    from ..reporting.pushing import UNREACHABLE

    token = recipe.training.hub_token or os.environ.get("HF_TOKEN")
    try:
        HfApi().whoami(token=token)
    except LocalTokenNotFoundError as error:
        raise ConfigError(
            "--push_to_hub needs a login: run `hf auth login`, or set HF_TOKEN."
        ) from error
    except HfHubHTTPError as error:
        raise ConfigError(
            f"--push_to_hub: the Hub refused the token ({error}). Run `hf auth login` again."
        ) from error
    # Both errors above are among these too, so this clause has to be the last.
    except UNREACHABLE as error:
        raise HubUnreachable(
            f"--push_to_hub: the Hub does not answer ({type(error).__name__}). Train without it, "
            f"and push later: grpo-hf push {recipe.training.output_dir} REPO"
        ) from error
