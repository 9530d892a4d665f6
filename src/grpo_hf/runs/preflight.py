"""Checks before a run: what can be wrong and can be known before a model is loaded."""

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from ..config import GRPOConfig
from ..data import prompts
from ..data.readers import Split, read_split
from ..errors import ConfigError, DataError, did_you_mean
from ..models import adapters, loading
from ..scoring.process_reward import process_reward
from ..scoring.registry import load_reward
from ..scoring.reward import Reward, require_columns
from ..scoring.scorer import isolate, refuse_namesakes, scored_rewards, weights_at
from ..scoring.trial import dry_run, first_rows, untried
from .output_checks import check_hub_login, checkpoint_to_resume
from .recipe import EMBEDDED_MODEL, Recipe

# What a message about a missing column advises; the column's name goes into the braces.
_RENAME = "--columns {}=<its name there>"


@dataclass(frozen=True)
class Task:
    """The rewards and the rows of a run, after they were checked against each other.

    Args:
        held_out: the rows for the evaluation at the end, or None where there is none.
        resume: the checkpoint to resume from, or None for a new run.
        notes: sentences about the data that the user should see.
    """

    rewards: list[Reward]
    eval_reward: Reward
    train: Split
    held_out: Split | None
    resume: str | None
    notes: list[str]


@dataclass(frozen=True)
class Prompts:
    """The datasets of a run, and the tokenizer with which their prompts were checked.

    Args:
        held_out: the prompts for the evaluation at the end, or None where there is none.
        notes: sentences about rows that were left out.
    """

    tokenizer: PreTrainedTokenizerBase
    train: Dataset
    held_out: Dataset | None
    notes: list[str]


def check_task(recipe: Recipe) -> Task:
    """Check rewards, data and output folder, none of which needs a model.

    Raises:
        GrpoError: the first thing that is wrong; see errors.py.
    """
    # The cheapest checks come first: the data may have to be downloaded.
    _check_cold_start(recipe)
    rewards, eval_reward = _rewards(recipe)
    train, held_out, notes = _data(recipe, rewards)
    resume = checkpoint_to_resume(recipe)
    if recipe.training.push_to_hub:
        check_hub_login(recipe)
    return Task(rewards, eval_reward, train, held_out, resume, notes)


def sample_rows(recipe: Recipe, count: int) -> tuple[list[Reward], list[dict[str, Any]], list[str]]:
    """Return the rewards of a recipe, the first rows of its training data, and notes on the data.

    Each row has its prompt as `prompt`. The prompt is a list of messages, unless the tokenizer of
    the model is in a local folder and has no chat template.

    Raises:
        GrpoError: as `check_task`.
    """
    rewards, _ = _rewards(recipe)
    train, _, notes = _data(recipe, rewards)
    if train.bad:
        notes.append(train.describe_bad())
    build = _prompt_builder(recipe, chat=_has_chat_template(recipe))
    column = prompts.prompt_column(train, recipe.task.prompt_column)
    rows: list[dict[str, Any]] = []
    for row in train.rows:
        # A value that is no prompt raises ValueError; a run leaves such a row out as well.
        with suppress(ValueError):
            rows.append({**row, "prompt": build(row[column])})
        if len(rows) == count:
            break
    return rewards, rows, notes


def check_rows(recipe: Recipe, task: Task, *, chat: bool) -> None:
    """Check that the training rows have usable prompts, and try the rewards on two of them.

    Raises:
        GrpoError: the first thing that is wrong; see errors.py.
    """
    dataset, _ = _dataset(recipe, task, task.train, chat=chat)
    _try_rewards(recipe, task.rewards, dataset)


def check_model(recipe: Recipe, task: Task) -> Prompts:
    """Check the model's files, the adapter, and that every prompt fits; no weights are loaded.

    Raises:
        GrpoError: the first thing that is wrong; see errors.py.
    """
    name = recipe.model.model_name_or_path
    if name is None:
        raise ConfigError(
            "no model named: give --model_name_or_path (a local folder, or a model on the Hub)."
        )
    source = _model_source(recipe)
    config = loading.read_model_config(name, **source)
    tokenizer = loading.load_tokenizer(name, **source)
    if recipe.task.adapter is not None:
        adapters.check_adapter(recipe.task.adapter, config)
    notes: list[str] = []

    def prompts_of(split: Split) -> Dataset:
        dataset, checked = _dataset(recipe, task, split, chat=tokenizer.chat_template is not None)
        if checked.bad:
            notes.append(checked.describe_bad())
        _check_lengths(dataset, checked.source, tokenizer, config, recipe.training)
        return dataset

    train = prompts_of(task.train)
    # Trying the rewards may start processes, so cheaper checks of the data come first.
    _try_rewards(recipe, task.rewards, train)
    held_out = prompts_of(task.held_out) if task.held_out else None
    return Prompts(tokenizer, train, held_out, notes)


def _check_cold_start(recipe: Recipe) -> None:
    """Check that the embedded model has a cold start, and that no other model has one."""
    embedded = recipe.model.model_name_or_path == EMBEDDED_MODEL
    if embedded != (recipe.task.cold_start_steps > 0):
        raise ConfigError(
            f"model_name_or_path is {recipe.model.model_name_or_path!r} and cold_start_steps "
            f"{recipe.task.cold_start_steps}: the cold start is for {EMBEDDED_MODEL!r}, which "
            "needs one. Set --cold_start_steps 0 for another model."
        )


def _model_source(recipe: Recipe) -> dict[str, Any]:
    """Return the keyword arguments that say which version of a model is read."""
    return {
        "revision": recipe.model.model_revision,
        "gguf_file": recipe.task.gguf_file,
        "trust_remote_code": recipe.training.trust_remote_code,
    }


def _has_chat_template(recipe: Recipe) -> bool:
    """Whether prompts become messages, as far as this can be known without a download."""
    name = recipe.model.model_name_or_path
    if name == EMBEDDED_MODEL:
        # Its tokenizer is made by the cold start, which comes later.
        return False
    if name is None or not Path(name).is_dir():
        # Most models on the Hub have a chat template, and reading one may mean a download.
        return True
    tokenizer = loading.load_tokenizer(name, **_model_source(recipe))
    return tokenizer.chat_template is not None


def _prompt_builder(recipe: Recipe, *, chat: bool) -> Callable[[Any], Any]:
    """Return the function that makes a prompt from the value of a row's prompt column."""
    task = recipe.task
    return prompts.prompt_builder(
        chat=chat, system_prompt=task.system_prompt, instruction=task.instruction
    )


def _dataset(recipe: Recipe, task: Task, split: Split, *, chat: bool) -> tuple[Dataset, Split]:
    """Return the usable rows of a split as the trainer takes them, and the checked split.

    The checked split names the unusable rows among its `bad` ones.
    """
    # Sorted, so that the message about an empty column names the same one in every run.
    needed: set[str] = set()
    for reward in task.rewards:
        needed.update(reward.columns)
    column = prompts.prompt_column(split, recipe.task.prompt_column)
    build = _prompt_builder(recipe, chat=chat)
    return prompts.build_dataset(split, column, build, sorted(needed))


def _rewards(recipe: Recipe) -> tuple[list[Reward], Reward]:
    """Return the rewards of a recipe, and the one that counts right answers."""
    task = recipe.task
    if not task.rewards:
        raise ConfigError(
            "no reward named: give --rewards, as in --rewards gsm8k. Try `grpo-hf rewards list`."
        )
    rewards = []
    for spec in task.rewards:
        rewards.append(load_reward(spec, relative_to=recipe.folder))
    # Names are the keys of metrics and of eval_reward below.
    refuse_namesakes(rewards)
    _check_weights(recipe.training, rewards)
    if task.eval_reward is None:
        return rewards, rewards[0]
    by_name = {}
    for reward in rewards:
        by_name[reward.name] = reward
    if task.eval_reward not in by_name:
        raise ConfigError(
            f"eval_reward is {task.eval_reward!r}, which is not among the rewards "
            f"{', '.join(by_name)}.{did_you_mean(task.eval_reward, by_name)}"
        )
    return rewards, by_name[task.eval_reward]


def _check_weights(training: GRPOConfig, rewards: Sequence[Reward]) -> None:
    """Check that there is one weight per reward; the process reward is the last of them."""
    counted = list(rewards)
    if training.process_reward is not None:
        counted.append(process_reward(training.process_reward))
    weights = training.reward_weights
    if weights is not None and len(weights) != len(counted):
        names = ", ".join(reward.name for reward in counted)
        example = " ".join(["1.0"] * len(counted))
        raise ConfigError(
            f"reward_weights has {len(weights)} entries for {len(counted)} rewards ({names}); "
            "expected one weight per reward, in their order, as in "
            f"--reward_weights {example}."
        )
    # It raises where reward_weights and a weight among a reward's own options are both given.
    weights_at(scored_rewards(counted) or [], weights, 0)


def _try_rewards(recipe: Recipe, rewards: Sequence[Reward], train: Dataset) -> None:
    """Call each reward on two rows, so that a broken one fails before a model is loaded."""
    # Some programs check a recipe more than once; a reward is called only the first time.
    entries = scored_rewards(untried(rewards))
    training = recipe.training
    process = isolate(entries, workers=training.reward_workers, timeout=training.reward_timeout)
    try:
        dry_run(entries or [], first_rows(train), strict=True)
    finally:
        if process is not None:
            process.close()


def _data(recipe: Recipe, rewards: Sequence[Reward]) -> tuple[Split, Split | None, list[str]]:
    """Return the training rows, the held-out rows or None, and notes on the data."""
    task = recipe.task
    train = _read_split(recipe, rewards, task.dataset_train_split)
    # Only an optional split may be missing.
    assert train is not None
    if task.eval_rows < 0:
        raise ConfigError(
            f"eval_rows is {task.eval_rows}; expected a number of prompts, or 0 for no evaluation."
        )
    # Without an evaluation the test split is not even read: it need not exist.
    if not task.eval_rows:
        return train, None, []
    test = _read_split(recipe, rewards, task.dataset_test_split, optional=True)
    if test is not None:
        # The first rows, so that all runs are evaluated on the same prompts.
        return train, Split(test.rows[: task.eval_rows], test.bad, test.source), []
    # At least one row has to remain to train on.
    if len(train.rows) <= task.eval_rows:
        raise DataError(
            f"{train.source} has no split {task.dataset_test_split!r} and {len(train.rows)} rows, "
            f"too few to hold out {task.eval_rows} of them. Give --eval_rows a smaller number, or "
            "0 to train without an evaluation."
        )
    # The run's seed chooses the rows, so a resumed run holds out the same ones.
    held_out, rest = prompts.hold_out(train, task.eval_rows, recipe.training.seed)
    note = (
        f"{train.source} has no split {task.dataset_test_split!r}: {task.eval_rows} of its rows "
        "are held out."
    )
    return rest, held_out, [note]


def _read_split(
    recipe: Recipe, rewards: Sequence[Reward], name: str, *, optional: bool = False
) -> Split | None:
    """Read a split, rename its columns, and check that it has those that the rewards need.

    Returns:
        The split, or None where it is optional and missing.
    """
    task = recipe.task
    split = read_split(
        path=task.dataset_path,
        name=task.dataset_name,
        config=task.dataset_config,
        seed=recipe.training.seed,
        split=name,
        optional=optional,
    )
    if split is None:
        return None
    split = prompts.rename_columns(split, recipe.column_map)
    require_columns(rewards, prompts.column_names(split.rows), split.source, _RENAME)
    return split


def _check_lengths(
    dataset: Dataset,
    source: str,
    tokenizer: PreTrainedTokenizerBase,
    config: Any,
    training: GRPOConfig,
) -> None:
    """Check that every prompt and a completion of full length fit the model's context."""
    context = getattr(config.get_text_config(), "max_position_embeddings", None)
    # Some architectures have no limit, such as state-space models.
    if context is None:
        return
    # TRL takes None as no limit of its own; then only the prompts themselves can be checked.
    completion = training.max_completion_length or 0
    lengths = []
    for token_ids in prompts.prompt_token_ids(
        dataset["prompt"], tokenizer, training.chat_template_kwargs
    ):
        lengths.append(len(token_ids))
    longest = max(lengths)
    if longest + completion > context:
        too_long = sum(length + completion > context for length in lengths)
        raise DataError(
            f"{source}: {too_long} of {len(lengths)} prompts do not fit the model's context of "
            f"{context} tokens: the longest (usable row {lengths.index(longest)}) has {longest}, "
            f"and max_completion_length adds {completion}. Shorten or leave out those rows, lower "
            "--max_completion_length, or take a model with a longer context."
        )
