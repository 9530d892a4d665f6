"""Checks before a run: what can be wrong and can be known before a model is loaded."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datasets import Dataset, IterableDataset
from peft import PeftConfig
from transformers import PreTrainedTokenizerBase

from ..config import GRPOConfig
from ..data import prompts, rows
from ..data.overlap import digests_of
from ..data.readers import Split
from ..data.training_data import check_prompt_count, check_training_data
from ..demo.tiny_model import tiny_config, tiny_tokenizer
from ..errors import ConfigError, DataError, did_you_mean
from ..models import adapters, loading
from ..models.adapter_trial import check_adapter_fits
from ..reporting.report_to import check_report_to
from ..rollout.vllm_adapter import check_adapter_folder
from ..rollout.vllm_engine import find_servers
from ..rollout.vllm_sync import choose_sync
from ..scoring.model_tools import Tool, load_tools
from ..scoring.process_reward import process_reward
from ..scoring.registry import load_reward
from ..scoring.reward import Reward
from ..scoring.run_rewards import isolate, refuse_namesakes, scored_rewards, told_apart
from ..scoring.scorer import weights_at
from ..scoring.signature import gold_columns, needed_columns
from ..scoring.trial import dry_run, first_rows, untried
from ..trl_seam import prepare_tool_calls
from .output_checks import check_hub_login, checkpoint_to_resume
from .plan import warn_if_too_large
from .prompt_checks import check_lengths, continue_answers
from .recipe import EMBEDDED_MODEL, Recipe
from .run_data import (
    dataset_of,
    form_of_prompts,
    model_source,
    read_data,
    stream_of,
    tokenizer_at_hand,
)


@dataclass(frozen=True)
class Task:
    """The rewards and the rows of a run, after they were checked against each other.

    Args:
        train: all training rows, or the first ones of a stream.
        held_out: the rows for evaluations, or None where there are none.
        resume: the checkpoint to resume from, or None for a new run.
        notes: sentences about the data that the user should see.
        stream: the training rows as they are read while the run trains, if they are.
        tools: what the model may call.
    """

    rewards: list[Reward]
    eval_reward: Reward
    train: Split
    held_out: Split | None
    resume: str | None
    notes: list[str]
    stream: IterableDataset | None = None
    tools: Sequence[Tool] = ()


@dataclass(frozen=True)
class Prompts:
    """The datasets of a run, and the tokenizer with which their prompts were checked.

    Args:
        held_out: the prompts for evaluations, or None where there are none.
        notes: sentences about rows that were left out, and about the form of the prompts.
        form: how the prompts were made.
    """

    tokenizer: PreTrainedTokenizerBase
    train: Dataset | IterableDataset
    held_out: Dataset | None
    notes: list[str]
    form: prompts.PromptForm

    def digests(self) -> frozenset[str] | None:
        """Return the digests of the training prompts, or None of a stream."""
        if not isinstance(self.train, Dataset):
            return None
        return frozenset(digests_of(self.train["prompt"], self.form))


def check_task(
    recipe: Recipe, *, may_stream: bool = False, may_use_tools: bool = False, trains: bool = True
) -> Task:
    """Check rewards, data and output folder, none of which needs a model.

    Args:
        may_stream: whether the program can train on a stream (`dataset_streaming`).
        may_use_tools: whether the model may call `tools` in it.
        trains: whether it writes a run; else the output folder may hold anything.

    Raises:
        GrpoError: the first thing that is wrong; see errors.py.
    """
    # The cheapest checks come first: the data may have to be downloaded.
    if recipe.task.dataset_streaming and not may_stream:
        raise ConfigError(
            "dataset_streaming: this program has to know all rows. Leave dataset_streaming out."
        )
    if recipe.task.tools and not may_use_tools:
        raise ConfigError("tools: the model calls none in this program. Leave tools out.")
    if trains:
        check_report_to(recipe.training)
    _check_cold_start(recipe)
    _check_evaluations(recipe)
    rewards, eval_reward = rewards_of(recipe)
    tools = load_tools(recipe.task.tools, recipe.folder)
    data = read_data(recipe, rewards)
    resume = checkpoint_to_resume(recipe) if trains else None
    if trains and recipe.training.push_to_hub:
        check_hub_login(recipe)
    return Task(
        rewards,
        eval_reward,
        data.train,
        data.held_out,
        resume,
        data.notes,
        data.stream,
        tools,
    )


def sample_rows(recipe: Recipe, count: int) -> tuple[list[Reward], list[dict[str, Any]], list[str]]:
    """Return the rewards of a recipe, the first rows of its training data, and notes on the data.

    Each row has its prompt as `prompt`. The prompt is a list of messages, unless the tokenizer of
    the model is in a local folder and has no chat template.

    Raises:
        GrpoError: as `check_task`.
    """
    rewards, _ = rewards_of(recipe)
    data = read_data(recipe, rewards)
    train = data.train
    notes = [*data.notes]
    form, notes_on_form = form_of_prompts(recipe, train, tokenizer_at_hand(recipe))
    build = prompts.prompt_builder(form)
    column = rows.prompt_column(train, recipe.task.prompt_column)
    needed, gold = needed_columns(rewards), gold_columns(rewards)
    # All rows, and not only those that are tried: a run leaves out the same ones.
    checked = rows.usable_rows(train, column, build, needed, gold)
    # Of a stream these are the first rows, which were counted as they were read.
    if data.stream is None:
        notes = [*_notes_on_count(checked, recipe.training), *notes]
    splits = [checked]
    if data.held_out is not None:
        splits.append(rows.usable_rows(data.held_out, column, build, needed, gold))
    for split in splits:
        if split.bad:
            notes.append(split.describe_bad())
    return rewards, checked.rows[:count], notes + notes_on_form


def _notes_on_count(train: Split, training: GRPOConfig) -> list[str]:
    """Return why a training would refuse rows, where they are too few for one."""
    try:
        check_prompt_count(len(train.rows), training, source=train.source)
    except DataError as error:
        return [f"`grpo-hf train` would refuse this data: {error}"]
    return []


def check_embedded(recipe: Recipe, task: Task) -> None:
    """Check that every training prompt fits the embedded model, and try the rewards on two.

    That model does not exist yet, so this stands for `check_model` until then.

    Raises:
        GrpoError: the first thing that is wrong; see errors.py.
    """
    form, _ = form_of_prompts(recipe, task.train, tokenizer_at_hand(recipe))
    dataset, checked = dataset_of(recipe, task.rewards, task.train, form)
    check_training_data(dataset, recipe.training, source=checked.source)
    tokenizer = tiny_tokenizer()
    if task.tools:
        prepare_tool_calls(tokenizer)
    config = tiny_config(tokenizer)
    check_lengths(dataset, checked.source, tokenizer, config, recipe)
    _check_new_adapter(recipe, config)
    _try_rewards(recipe, task.rewards, dataset)


def check_model(recipe: Recipe, task: Task) -> Prompts:
    """Check the model's files, the adapter, and that every prompt fits; no weights are loaded.

    Memory that will not suffice is a warning, since it is only foretold.

    Raises:
        GrpoError: the first thing that is wrong; see errors.py.
    """
    name = recipe.model.model_name_or_path
    if name is None:
        raise ConfigError(
            "no model named: give --model_name_or_path (a local folder, or a model on the Hub)."
        )
    source = model_source(recipe)
    config = loading.read_model_config(name, **source)
    tokenizer = loading.load_tokenizer(name, **source)
    if recipe.task.adapter is not None:
        adapters.check_adapter(recipe.task.adapter, config)
    else:
        _check_new_adapter(recipe, config)
    _check_engine(recipe)
    if task.tools:
        prepare_tool_calls(tokenizer)
    recipe.shorten_completions(loading.generation_limit(name, revision=source["revision"]))
    form, notes = form_of_prompts(recipe, task.train, tokenizer)
    # The longest prompt of each split.
    lengths: list[int] = []

    def prompts_of(split: Split) -> Dataset:
        dataset, checked = dataset_of(recipe, task.rewards, split, form)
        if checked.bad:
            notes.append(checked.describe_bad())
        notes.extend(continue_answers(recipe.training, dataset["prompt"]))
        lengths.append(
            check_lengths(dataset, checked.source, tokenizer, config, recipe, task.tools)
        )
        return dataset

    train: Any = prompts_of(task.train)
    if task.stream is None:
        check_training_data(train, recipe.training, source=task.train.source)
    # Trying the rewards may start processes, so cheaper checks of the data come first.
    _try_rewards(recipe, task.rewards, train)
    held_out = prompts_of(task.held_out) if task.held_out else None
    if task.stream is not None:
        train = stream_of(recipe, task.rewards, task.train, task.stream, form)
    # The comparison at the end is the model's own work: an engine reads held-out prompts only
    # in evaluations during the training.
    sampled = lengths if recipe.training.eval_strategy != "no" else lengths[:1]
    _check_room_of_engine(recipe.training, max(sampled))
    warn_if_too_large(recipe, config, lengths[0])
    return Prompts(tokenizer, train, held_out, notes, form)


def _check_new_adapter(recipe: Recipe, config: Any) -> None:
    """Check that the adapter of a recipe fits its model."""
    adapter = loading.lora_config(recipe.model)
    if adapter is not None:
        check_adapter_fits(adapter, config, trust_remote_code=recipe.training.trust_remote_code)


def _check_engine(recipe: Recipe) -> None:
    """Check that vLLM can sample the policy of a recipe, if it is asked to."""
    if not recipe.training.use_vllm:
        return
    config = loading.lora_config(recipe.model)
    if recipe.task.adapter is not None:
        config = PeftConfig.from_pretrained(recipe.task.adapter)
    args = recipe.training
    sync = choose_sync(
        args,
        config,
        quantized=recipe.model.load_in_4bit or recipe.model.load_in_8bit,
        from_gguf=recipe.task.gguf_file is not None,
    )
    if args.vllm_adapter_dir is not None:
        check_adapter_folder(Path(args.vllm_adapter_dir))
    # A launcher counts machines from 0, and on others than the first nobody samples at servers.
    if args.vllm_mode == "server" and os.environ.get("GROUP_RANK", "0") == "0":
        # Who says for how long expects that it is waited.
        waits = "vllm_server_timeout" in recipe.given
        base = str(recipe.model.model_name_or_path)
        find_servers(args, base, config, sync=sync, waits=waits)


def _check_room_of_engine(args: GRPOConfig, longest: int) -> None:
    """Check that the longest prompt leaves room for a token in an engine beside the training."""
    room = args.vllm_max_model_length
    if args.use_vllm and args.vllm_mode == "colocate" and room and 0 < room <= longest:
        raise ConfigError(
            f"vllm_max_model_length is {room}, and the longest prompt has {longest} tokens: vLLM "
            f"needs room for a completion, too. Set --vllm_max_model_length "
            f"{longest + (args.max_completion_length or 1)}, or leave it out."
        )


def _check_cold_start(recipe: Recipe) -> None:
    """Check that the embedded model has a cold start, and that no other model has one."""
    embedded = recipe.model.model_name_or_path == EMBEDDED_MODEL
    if embedded != (recipe.task.cold_start_steps > 0):
        raise ConfigError(
            f"model_name_or_path is {recipe.model.model_name_or_path!r} and cold_start_steps "
            f"{recipe.task.cold_start_steps}: the cold start is for {EMBEDDED_MODEL!r}, which "
            "needs one, of 300 steps in the demo. Set --cold_start_steps 300 for it, 0 for another "
            "model."
        )


def _check_evaluations(recipe: Recipe) -> None:
    """Check that evaluations during the training have prompts."""
    strategy = recipe.training.eval_strategy
    if strategy != "no" and recipe.task.eval_rows == 0:
        raise ConfigError(
            f"eval_strategy is {getattr(strategy, 'value', strategy)!r} and eval_rows 0: there is "
            "nothing to evaluate on. Give --eval_rows 200, or leave eval_strategy out."
        )


def rewards_of(recipe: Recipe) -> tuple[list[Reward], Reward]:
    """Return the rewards of a recipe, and the one that counts right answers."""
    task = recipe.task
    if not task.rewards:
        raise ConfigError(
            "no reward named: give --rewards, as in --rewards gsm8k. Try `grpo-hf rewards list`."
        )
    rewards = []
    for spec in task.rewards:
        rewards.append(load_reward(spec, relative_to=recipe.folder))
    rewards = told_apart(rewards)
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


def judges_of(rewards: Sequence[Reward], eval_reward: Reward) -> list[Reward]:
    """Return rewards in the order of an evaluation, in which the first says what is right."""
    return [eval_reward, *(reward for reward in rewards if reward is not eval_reward)]


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
