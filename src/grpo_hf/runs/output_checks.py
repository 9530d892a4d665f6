"""Checks of where a run's results go: a free output folder, a checkpoint to resume, the Hub."""

import json
import os
from pathlib import Path

from ..durability.resume import AUTO, checkpoint_for
from ..errors import ConfigError, HubUnreachable
from ..reporting.output_folder import claim_output_folder
from .recipe import Recipe


def checkpoint_to_resume(recipe: Recipe) -> str | None:
    """Return what a trainer is told to resume from, None for a new run into a free folder.

    Raises:
        ConfigError: there is no such checkpoint, or its run has finished.
        OutputExistsError: the output folder holds another run.
    """
    folder = Path(recipe.training.output_dir)
    wish = recipe.training.resume_from_checkpoint
    checkpoint = checkpoint_for(folder, wish)
    claim_output_folder(folder, resume=wish)
    # In a loop that restarts, the end of a run is no mistake: what comes after it may be left.
    if str(wish).lower() == AUTO:
        return AUTO
    if checkpoint is None:
        return None
    _check_unfinished(checkpoint, recipe.training.max_steps)
    return str(checkpoint)


def _check_unfinished(checkpoint: Path, max_steps: int) -> None:
    """Refuse to resume a run at its end, where transformers 5.23 would train one more step."""
    state = checkpoint / "trainer_state.json"
    step = 0
    if state.is_file():
        step = json.loads(state.read_text(encoding="utf-8"))["global_step"]
    # max_steps is -1 where the run's length is given in epochs.
    if 0 < max_steps <= step:
        raise ConfigError(
            f"{checkpoint} is at step {step} of {max_steps}: the run has finished. Give a larger "
            "--max_steps to go on."
        )


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
