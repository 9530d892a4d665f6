"""Everything that can be wrong with a run and can be known before a model is loaded."""

import json
import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datasets import Dataset
from transformers import PreTrainedTokenizerBase
from transformers.trainer_utils import get_last_checkpoint

from ..config import GRPOConfig
from ..data import prompts
from ..data.readers import Split, read_split
from ..errors import ConfigError, DataError, HubUnreachable, OutputExistsError, did_you_mean
from ..models import adapters, loading
from ..reporting.output_folder import claim_output_folder
from ..scoring.process_reward import process_reward
from ..scoring.registry import load_reward
from ..scoring.reward import Reward, require_columns
from ..scoring.scorer import isolate, refuse_namesakes, scored_rewards, weights_at
from ..scoring.trial import dry_run, first_rows, untried
from .recipe import EMBEDDED_MODEL, Recipe

_RENAME = "--columns {}=<its name there>"


@dataclass(frozen=True)
class Task:
    """Rewards and rows that fit each other, and an output folder that is free."""

    rewards: list[Reward]
    eval_reward: Reward
    train: Split
    held_out: Split | None
    resume: str | None
    notes: list[str]


@dataclass(frozen=True)
class Prompts:
    """Datasets whose prompts fit the model, and the tokenizer that said so."""

    tokenizer: PreTrainedTokenizerBase
    train: Dataset
    held_out: Dataset | None
    notes: list[str]


def check_task(recipe: Recipe) -> Task:
    """Check rewards, data and output folder: what needs no model at all.

    Raises:
        GrpoError: the first thing that is wrong; see errors.py.
    """
    if (recipe.model.model_name_or_path == EMBEDDED_MODEL) != (recipe.task.cold_start_steps > 0):
        raise ConfigError(
            f"model_name_or_path is {recipe.model.model_name_or_path!r} and cold_start_steps "
            f"{recipe.task.cold_start_steps}: the cold start is for {EMBEDDED_MODEL!r}, which needs one. Set "
            "--cold_start_steps 0 for another model."
        )
    rewards, eval_reward = _rewards(recipe)
    train, held_out, notes = _data(recipe, rewards)
    resume = _output(recipe)
    if recipe.training.push_to_hub:
        _hub_login(recipe)
    return Task(rewards, eval_reward, train, held_out, resume, notes)


def sample_rows(recipe: Recipe, count: int) -> tuple[list[Reward], list[dict[str, Any]], list[str]]:
    """The rewards of a recipe, the first rows of its training data with the prompt as `prompt`, and notes on the data.

    The prompt is a list of messages, unless the model's tokenizer is at hand and has no chat template.

    Raises:
        GrpoError: as `check_task`.
    """
    rewards, _ = _rewards(recipe)
    train, _, notes = _data(recipe, rewards)
    notes += [train.describe_bad()] if train.bad else []
    settings, name = recipe.task, recipe.model.model_name_or_path
    chat = name != EMBEDDED_MODEL
    if chat and name is not None and Path(name).is_dir():
        source = {"revision": recipe.model.model_revision, "gguf_file": settings.gguf_file}
        trusted = recipe.training.trust_remote_code
        chat = (
            loading.load_tokenizer(name, **source, trust_remote_code=trusted).chat_template
            is not None
        )
    build, column = (
        _prompt_builder(recipe, chat=chat),
        prompts.prompt_column(train, settings.prompt_column),
    )
    rows: list[dict[str, Any]] = []
    for row in train.rows:
        with suppress(ValueError):  # not a prompt; a run leaves it out as well
            rows.append({**row, "prompt": build(row[column])})
        if len(rows) == count:
            break
    return rewards, rows, notes


def check_rows(recipe: Recipe, task: Task, *, chat: bool) -> None:
    """Check that the training rows have usable prompts, and try the rewards on two of them.

    Raises:
        GrpoError: the first thing that is wrong; see errors.py.
    """
    _try_rewards(recipe, task.rewards, _dataset(recipe, task, task.train, chat=chat)[0])


def check_model(recipe: Recipe, task: Task) -> Prompts:
    """Check the model's files, the adapter, and that every prompt fits: what needs no weights.

    Raises:
        GrpoError: the first thing that is wrong; see errors.py.
    """
    settings, name = recipe.task, recipe.model.model_name_or_path
    if name is None:
        raise ConfigError(
            "no model named: give --model_name_or_path (a local folder, or a model on the Hub)."
        )
    source = {
        "revision": recipe.model.model_revision,
        "gguf_file": settings.gguf_file,
        "trust_remote_code": recipe.training.trust_remote_code,
    }
    config = loading.read_model_config(name, **source)
    tokenizer = loading.load_tokenizer(name, **source)
    if settings.adapter is not None:
        adapters.check_adapter(settings.adapter, config)
    notes: list[str] = []

    def prompts_of(split: Split) -> Dataset:
        dataset, checked = _dataset(recipe, task, split, chat=tokenizer.chat_template is not None)
        notes.extend([checked.describe_bad()] if checked.bad else [])
        _check_lengths(dataset, checked.source, tokenizer, config, recipe.training)
        return dataset

    train = prompts_of(task.train)
    _try_rewards(recipe, task.rewards, train)
    return Prompts(tokenizer, train, prompts_of(task.held_out) if task.held_out else None, notes)


def _prompt_builder(recipe: Recipe, *, chat: bool) -> Any:
    task = recipe.task
    return prompts.prompt_builder(
        chat=chat, system_prompt=task.system_prompt, instruction=task.instruction
    )


def _dataset(recipe: Recipe, task: Task, split: Split, *, chat: bool) -> tuple[Dataset, Split]:
    """The usable rows of a split as the trainer takes them, and the split with the others among its bad ones."""
    needed = sorted({column for reward in task.rewards for column in reward.columns})
    column = prompts.prompt_column(split, recipe.task.prompt_column)
    return prompts.build_dataset(split, column, _prompt_builder(recipe, chat=chat), needed)


def _rewards(recipe: Recipe) -> tuple[list[Reward], Reward]:
    task = recipe.task
    if not task.rewards:
        raise ConfigError(
            "no reward named: give --rewards, as in --rewards gsm8k. Try `grpo-hf rewards list`."
        )
    rewards = [load_reward(spec, relative_to=recipe.folder) for spec in task.rewards]
    refuse_namesakes(rewards)
    weights = recipe.training.reward_weights
    spec = recipe.training.process_reward
    counted = rewards if spec is None else [*rewards, process_reward(spec)]
    if weights is not None and len(weights) != len(counted):
        raise ConfigError(
            f"reward_weights has {len(weights)} entries for {len(counted)} rewards "
            f"({', '.join(reward.name for reward in counted)}); expected one weight per reward, in their order, as in "
            f"--reward_weights {' '.join(['1.0'] * len(counted))}."
        )
    weights_at(scored_rewards(list(counted)) or [], weights, 0)
    if task.eval_reward is None:
        return rewards, rewards[0]
    by_name = {reward.name: reward for reward in rewards}
    if task.eval_reward not in by_name:
        raise ConfigError(
            f"eval_reward is {task.eval_reward!r}, which is not among the rewards {', '.join(by_name)}."
            f"{did_you_mean(task.eval_reward, by_name)}"
        )
    return rewards, by_name[task.eval_reward]


def _try_rewards(recipe: Recipe, rewards: Sequence[Reward], train: Dataset) -> None:
    """Call each reward on two rows: what cannot work fails before a model is loaded."""
    entries = scored_rewards(untried(rewards))
    training = recipe.training
    process = isolate(entries, workers=training.reward_workers, timeout=training.reward_timeout)
    try:
        dry_run(entries or [], first_rows(train), strict=True)
    finally:
        if process is not None:
            process.close()


def _data(recipe: Recipe, rewards: Sequence[Reward]) -> tuple[Split, Split | None, list[str]]:
    task, seed = recipe.task, recipe.training.seed
    where = {
        "path": task.dataset_path,
        "name": task.dataset_name,
        "config": task.dataset_config,
        "seed": seed,
    }
    train = read_split(**where, split=task.dataset_train_split)
    assert train is not None  # only an optional split may be missing
    train = prompts.rename_columns(train, recipe.column_map)
    require_columns(rewards, prompts.column_names(train.rows), train.source, _RENAME)
    if task.eval_rows < 0:
        raise ConfigError(
            f"eval_rows is {task.eval_rows}; expected a number of prompts, or 0 for no evaluation."
        )
    if not task.eval_rows:
        return train, None, []
    test = read_split(**where, split=task.dataset_test_split, optional=True)
    if test is not None:
        test = prompts.rename_columns(test, recipe.column_map)
        require_columns(rewards, prompts.column_names(test.rows), test.source, _RENAME)
        return train, Split(test.rows[: task.eval_rows], test.bad, test.source), []
    if len(train.rows) <= task.eval_rows:
        raise DataError(
            f"{train.source} has no split {task.dataset_test_split!r} and {len(train.rows)} rows, too few to hold out "
            f"{task.eval_rows} of them. Give --eval_rows a smaller number, or 0 to train without an evaluation."
        )
    held_out, rest = prompts.hold_out(train, task.eval_rows, seed)
    note = f"{train.source} has no split {task.dataset_test_split!r}: {task.eval_rows} of its rows are held out."
    return rest, held_out, [note]


def _output(recipe: Recipe) -> str | None:
    """The checkpoint to resume from, or None for a new run into a folder that is free."""
    folder, resume = Path(recipe.training.output_dir), recipe.training.resume_from_checkpoint
    if not resume or str(resume).lower() == "false":
        claim_output_folder(folder)
        return None
    if str(resume).lower() != "true":
        if not Path(resume).is_dir():
            raise ConfigError(f"--resume_from_checkpoint {resume}: no such checkpoint folder.")
        claim_output_folder(folder, resume=resume)
        _check_unfinished(Path(resume), recipe.training.max_steps)
        return str(resume)
    last = get_last_checkpoint(str(folder)) if folder.is_dir() else None
    if last is None:
        raise OutputExistsError(
            f"{folder} holds no checkpoint to resume from. Remove the folder or give another --output_dir, leave "
            "--resume_from_checkpoint out, and set --save_steps below the number of steps to have checkpoints."
        )
    _check_unfinished(Path(last), recipe.training.max_steps)
    return last


def _check_unfinished(checkpoint: Path, max_steps: int) -> None:
    """Refuse to resume a run at its end: transformers 5.23 would train one step more."""
    state = checkpoint / "trainer_state.json"
    step = json.loads(state.read_text(encoding="utf-8"))["global_step"] if state.is_file() else 0
    if 0 < max_steps <= step:
        raise ConfigError(
            f"{checkpoint} is at step {step} of {max_steps}: the run has finished. Give a larger --max_steps to go on."
        )


def _hub_login(recipe: Recipe) -> None:
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, LocalTokenNotFoundError

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
    except OSError as error:
        raise HubUnreachable(
            f"--push_to_hub: the Hub does not answer ({type(error).__name__}). Train without it and push the output "
            "folder later."
        ) from error


def _check_lengths(
    dataset: Dataset,
    source: str,
    tokenizer: PreTrainedTokenizerBase,
    config: Any,
    training: GRPOConfig,
) -> None:
    context = getattr(config.get_text_config(), "max_position_embeddings", None)
    if context is None:
        return
    completion = training.max_completion_length or 0
    lengths = list(
        map(
            len,
            prompts.prompt_token_ids(dataset["prompt"], tokenizer, training.chat_template_kwargs),
        )
    )
    longest = max(range(len(lengths)), key=lengths.__getitem__)
    if lengths[longest] + completion > context:
        too_long = sum(length + completion > context for length in lengths)
        raise DataError(
            f"{source}: {too_long} of {len(lengths)} prompts do not fit the model's context of {context} tokens: the "
            f"longest (usable row {longest}) has {lengths[longest]}, and max_completion_length adds {completion}. "
            "Shorten or leave out those rows, lower --max_completion_length, or take a model with a longer context."
        )
