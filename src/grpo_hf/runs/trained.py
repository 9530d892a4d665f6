"""What a run has trained, read back from its folder: the model, and how its prompts are made.

    trained = open_run(Path("runs/mine"))
    trained.model, trained.tokenizer, trained.settings

A run from a recipe has its settings in `recipe.yaml`. A run of a script has none, and only what its
adapter says is known.
"""

import sys
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import yaml
from peft import PeftConfig, PeftModel
from transformers import PreTrainedTokenizerBase
from transformers.utils import logging

from .. import run_folders
from ..data.prompts import PromptForm
from ..durability import whole_checkpoints
from ..errors import ConfigError, ModelError
from ..models import loading
from ..reporting.environment import read_starts
from ..rollout.sampling import sampling_of
from ..run_files import RECIPE_FILE
from ..run_folders import ADAPTER_FILE, MODEL_FILE, check_folder, no_weights_in
from .busy import say_if_busy
from .recipe import Recipe, saved_settings
from .task_arguments import TaskArguments

# A base that a run names by a relative path lies beside the folder that the run was started in.
_LEVELS_ABOVE = 4


@dataclass(frozen=True)
class RunSettings:
    """Settings of a run that its model is used with afterwards.

    Args:
        task: of which the system prompt and the instruction are part of each prompt.
        model: TRL's `ModelConfig`: the precision of the base, and where it comes from.
        training: those of `GRPOConfig` by name, as given or by default.
    """

    task: TaskArguments
    model: Any
    training: dict[str, Any]

    @property
    def sampling(self) -> dict[str, Any]:
        """The settings of `generate` that the run sampled with."""
        settings: Any = SimpleNamespace(**self.training)
        return sampling_of(settings)

    @property
    def max_new_tokens(self) -> int:
        """How long a completion was at most."""
        return self.training["max_completion_length"] or 256

    def form(self, tokenizer: PreTrainedTokenizerBase) -> PromptForm:
        """Return how a text becomes a prompt."""
        return PromptForm(
            chat=tokenizer.chat_template is not None,
            system_prompt=self.task.system_prompt,
            instruction=self.task.instruction,
        )


@dataclass(frozen=True)
class TrainedModel:
    """The model of a run.

    Args:
        folder: of the run, or of one of its checkpoints.
        model: the base with the adapter on it, or the whole model that was trained.
        base: the name or the folder of the base, where there is an adapter.
    """

    folder: Path
    model: Any
    tokenizer: PreTrainedTokenizerBase
    settings: RunSettings
    base: str | None

    @property
    def has_adapter(self) -> bool:
        """Whether the base is there as well, with the adapter disabled."""
        return self.base is not None


@dataclass(frozen=True)
class Weights:
    """Where the weights of a run are.

    Args:
        folder: that holds them.
        base: the name or the folder of the base, or None where the whole model was trained.
        note: a sentence that the user should see, or nothing.
    """

    folder: Path
    base: str | None
    note: str = ""


def open_run(
    run: Path,
    *,
    base: str | None = None,
    trust_remote_code: bool = False,
    say: Any = print,
    recipe: Recipe | None = None,
) -> TrainedModel:
    """Load the model and the tokenizer of a run, without dropout.

    Args:
        run: the output folder of a run, or a checkpoint in it.
        base: the base model, if it is no longer where the run found it.
        trust_remote_code: whether code from the base's repository may run. A recipe that came with
            a download does not decide that.
        say: is called with sentences that the user should see.
        recipe: how to load the model and to use it; by default the run's own recipe.

    Raises:
        ModelError: the folder holds no weights, or they do not fit the base.
        HubUnreachable: the base is on the Hub, and the Hub does not answer.
    """
    no_bars_in_a_file()
    weights = weights_of(run, base)
    if recipe is None:
        settings = settings_of(run)
    else:
        settings = RunSettings(recipe.task, recipe.model, dict(vars(recipe.training)))
    if weights.note:
        say(weights.note)
    tokenizer = tokenizer_of(weights, settings, trust_remote_code=trust_remote_code)
    model = load_weights(weights, settings.model, settings, trust_remote_code=trust_remote_code)
    device = "cuda" if torch.cuda.is_available() and not settings.training["use_cpu"] else "cpu"
    # A quantised base is on its device already.
    if not getattr(model, "is_quantized", False):
        model.to(device)
    return TrainedModel(weights.folder, model.eval(), tokenizer, settings, weights.base)


def no_bars_in_a_file() -> None:
    """Turn transformers' progress bars off where each refresh would be a line."""
    if not sys.stderr.isatty():
        logging.disable_progress_bar()


def settings_of(run: Path) -> RunSettings:
    """Return the settings of a run from its recipe, or the defaults where it has none.

    Raises:
        ConfigError: the recipe cannot be read.
    """
    file = recipe_file(run)
    if file is None:
        # A script loads its model as it likes; its files have the precision that they have.
        return RunSettings(*saved_settings({"dtype": "auto"}))
    try:
        values = yaml.safe_load(file.read_text(encoding="utf-8")) or {}
        return RunSettings(*saved_settings(values))
    except (OSError, ValueError, TypeError, yaml.YAMLError) as error:
        raise ConfigError(f"{file} cannot be read ({error}). Mend it, or remove it.") from error


def recipe_file(run: Path) -> Path | None:
    """Return the recipe of a run, or of the run that a checkpoint is of, if there is one."""
    return next(
        (each for each in (run / RECIPE_FILE, run.parent / RECIPE_FILE) if each.is_file()), None
    )


def weights_of(run: Path, base: str | None = None) -> Weights:
    """Find the weights of a run: its adapter or model, or else its newest whole checkpoint.

    Raises:
        DataError: there is no such folder.
        ModelError: it holds none.
    """
    check_folder(run)
    found = _weights_in(run, base)
    if found is not None:
        return found
    newest = whole_checkpoints.find(run).newest
    found = None if newest is None else _weights_in(newest, base)
    if newest is None or found is None:
        raise ModelError(no_weights_in(run))
    return replace(found, note=f"note: the run has not ended; this is {newest.name}.")


def _weights_in(folder: Path, base: str | None) -> Weights | None:
    # PEFT writes an adapter that is not called `default` into a folder of its name.
    named = []
    for file in sorted(folder.glob(f"*/{ADAPTER_FILE}")):
        if not file.parent.name.startswith("checkpoint-"):
            named.append(file)
    for file in (folder / ADAPTER_FILE, *named):
        if file.is_file():
            recorded = PeftConfig.from_pretrained(str(file.parent)).base_model_name_or_path
            return Weights(file.parent, base or _base_at(recorded, folder))
    return Weights(folder, None) if (folder / MODEL_FILE).is_file() else None


def _base_at(recorded: str | None, run: Path) -> str:
    """Return where the base of an adapter is now.

    Raises:
        ModelError: the adapter names none, or a folder that is not there.
    """
    if not recorded:
        raise ModelError(f"{run}: the adapter does not name its base. Give it: --base FOLDER.")
    if Path(recorded).is_dir():
        return recorded
    for name in _as_given(recorded, run):
        for start in (Path(), *run.resolve().parents[:_LEVELS_ABOVE]):
            if (start / name).is_dir():
                return str(start / name)
    if Path(recorded).is_absolute():
        raise ModelError(
            f"{run}: its base {recorded} is not there any more. Say where it is: --base FOLDER."
        )
    return recorded


def _as_given(recorded: str, run: Path) -> list[str]:
    """Return by which relative paths a base may have been given, where the run was started.

    A run and its base may have moved together, with the folder that both are in.
    """
    if not Path(recorded).is_absolute():
        return [recorded]
    names = []
    for home in (run, run.parent):
        given = run_folders.settings_of(home).get("model_name_or_path")
        if isinstance(given, str) and not Path(given).is_absolute():
            names.append(given)
        for start in read_starts(home):
            folder = str(start.get("folder", recorded))
            if folder != recorded and Path(recorded).is_relative_to(folder):
                names.append(str(Path(recorded).relative_to(folder)))
    return names


def tokenizer_of(
    weights: Weights, settings: RunSettings, *, trust_remote_code: bool = False
) -> PreTrainedTokenizerBase:
    """Return the tokenizer that the run has saved, or that of its base."""
    for folder in (weights.folder, weights.folder.parent):
        if any(folder.glob("tokenizer*")):
            return loading.load_tokenizer(str(folder), trust_remote_code=trust_remote_code)
    return loading.load_tokenizer(
        str(weights.base or weights.folder),
        revision=settings.model.model_revision,
        gguf_file=settings.task.gguf_file,
        trust_remote_code=trust_remote_code,
    )


def load_weights(
    weights: Weights, args: Any, settings: RunSettings, *, trust_remote_code: bool = False
) -> Any:
    """Return the base with the adapter on it, or the whole model.

    Args:
        args: the precision of the base.

    Raises:
        ModelError: they cannot be read, or do not fit each other.
    """
    say_if_busy()
    if weights.base is None:
        whole = replace(args, model_name_or_path=str(weights.folder), model_revision="main")
        return loading.load_base(whole, trust_remote_code=trust_remote_code)
    base = loading.load_base(
        replace(args, model_name_or_path=weights.base),
        gguf_file=settings.task.gguf_file,
        trust_remote_code=trust_remote_code,
    )
    return put_adapter(base, weights.folder)


def put_adapter(base: Any, folder: Path) -> PeftModel:
    """Put a saved adapter on a base.

    Raises:
        ModelError: it is for a base of other layers or sizes.
    """
    try:
        return PeftModel.from_pretrained(base, str(folder))
    except (RuntimeError, ValueError, KeyError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise ModelError(
            f"{folder}: the adapter does not fit the base ({reason}). Is --base the model that the "
            "run trained?"
        ) from error
