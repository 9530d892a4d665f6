"""The data of a run: its rows, read and held out, and its prompts in the form the trainer takes."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from datasets import Dataset, IterableDataset
from transformers import PreTrainedTokenizerBase

from ..data import prompts, rows
from ..data.overlap import note_on_equal_rows, notes_on_overlap
from ..data.prompts import ANSWERED_COLUMN, PromptForm
from ..data.readers import Split, read_split
from ..data.streams import first_rows_of, open_stream, stream_with_prompts
from ..data.training_data import check_prompt_count, check_training_data
from ..demo.tiny_model import tiny_tokenizer
from ..errors import ConfigError, DataError
from ..evaluation.comparison import too_few
from ..models import loading
from ..scoring.reward import Reward
from ..scoring.signature import gold_columns, needed_columns, require_columns
from .blank_answers import blank_notes
from .recipe import EMBEDDED_MODEL, Recipe

# What a message about a missing column advises; the column's name goes into the braces.
_RENAME = "--columns {}=<its name there>"
# So many rows of a stream are read ahead, to check columns and prompts by them.
_FIRST_ROWS = 64


@dataclass(frozen=True)
class RunData:
    """The rows of a run.

    Args:
        train: all training rows, or the first ones of a stream.
        held_out: the rows for evaluations, or None where there are none.
        notes: sentences about the data that the user should see.
        stream: the training rows as they are read while the run trains, if they are.
    """

    train: Split
    held_out: Split | None
    notes: list[str]
    stream: IterableDataset | None = None


def read_data(recipe: Recipe, rewards: Sequence[Reward]) -> RunData:
    """Read the training rows and the held-out rows.

    Raises:
        ConfigError: `eval_rows` is negative, or a setting does not go with a stream.
        DataError: see `read_split`; a reward lacks a column; too few rows to hold some out.
    """
    task = recipe.task
    if task.eval_rows < 0:
        raise ConfigError(
            f"eval_rows is {task.eval_rows}; expected a number of prompts, or 0 for no evaluation."
        )
    if task.dataset_streaming:
        return _read_stream(recipe, rewards)
    train = _read_split(recipe, rewards, task.dataset_train_split)
    # Only an optional split may be missing.
    assert train is not None
    notes = blank_notes(train, rewards, task.prompt_column)
    needed, gold = needed_columns(rewards), gold_columns(rewards)
    # Without an evaluation the test split is not even read: it need not exist.
    if not task.eval_rows:
        return RunData(train, None, notes)
    test = _read_split(recipe, rewards, task.dataset_test_split, optional=True)
    if test is not None:
        # The first rows, so that all runs are evaluated on the same prompts.
        held_out = replace(test, rows=test.rows[: task.eval_rows], total=test.count)
        # Of the rows that are asked; `held_out` counts the others as well.
        asked = Split(held_out.rows, [], test.source)
        notes += blank_notes(asked, rewards, task.prompt_column, "held-out rows")
        shared = notes_on_overlap(held_out, train, task.prompt_column, needed, gold)
        notes = [*shared, *notes]
        column = rows.prompt_column(train, task.prompt_column)
        counts = [rows.count_usable(each, column, needed, gold) for each in (held_out, train)]
        return RunData(train, held_out, [*notes, *too_few(*counts)])
    held_out_count = _rows_to_hold_out(recipe, train)
    # The run's seed chooses the rows, so a resumed run holds out the same ones.
    column = rows.prompt_column(train, recipe.task.prompt_column)
    held_out, rest = rows.hold_out(train, held_out_count, recipe.training.seed, column)
    # Rows that lack a prompt or an answer are left out later, as broken lines were before.
    asked_rows = rows.count_usable(held_out, column, needed, gold)
    trained_rows = rows.count_usable(rest, column, needed, gold)
    count = asked_rows + trained_rows
    usable = " usable" if count < train.count else ""
    note = (
        f"{asked_rows} of the {count}{usable} rows of {train.source} are held out, as it has no "
        f"split {task.dataset_test_split!r}."
    )
    if held_out_count != task.eval_rows:
        note += " As they are few, a fifth of all rows was taken (--eval_rows for another number)."
    note += note_on_equal_rows(held_out, rest, column, needed, gold)
    return RunData(rest, held_out, [note, *too_few(asked_rows, trained_rows), *notes])


def _rows_to_hold_out(recipe: Recipe, train: Split) -> int:
    """Return how many training rows are held out: `eval_rows`, or a fifth where that is less.

    What the user gives is taken as it is.

    Raises:
        DataError: no row would remain to train on.
    """
    wanted, count = recipe.task.eval_rows, len(train.rows)
    if "eval_rows" not in recipe.given and count > 1:
        return rows.rows_to_hold_out(count, wanted)
    if count <= wanted:
        raise DataError(
            f"{train.source} has no split {recipe.task.dataset_test_split!r} and {count} rows, too "
            f"few to hold out {wanted} of them. Give --eval_rows a smaller number, or 0 to train "
            "without an evaluation."
        )
    return wanted


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
    return None if split is None else _renamed(recipe, rewards, split)


def _renamed(recipe: Recipe, rewards: Sequence[Reward], split: Split) -> Split:
    """Rename the columns of a split, and check that it has those that the rewards need."""
    split = rows.rename_columns(split, recipe.column_map)
    require_columns(rewards, rows.column_names(split.rows), split.source, _RENAME)
    return split


def _read_stream(recipe: Recipe, rewards: Sequence[Reward]) -> RunData:
    """Open the training rows as a stream, and read its first rows and the held-out rows."""
    task, training = recipe.task, recipe.training
    if training.max_steps <= 0:
        raise ConfigError(
            f"dataset_streaming: a stream does not say how long it is, and max_steps is "
            f"{training.max_steps}. Give --max_steps."
        )
    place: dict[str, Any] = {
        "path": task.dataset_path,
        "name": task.dataset_name,
        "config": task.dataset_config,
    }
    stream = open_stream(**place, split=task.dataset_train_split)
    # Only an optional split may be missing.
    assert stream is not None
    check_training_data(stream, training)
    source = f"{task.dataset_path or task.dataset_name}, read as a stream"
    held_out = None
    notes = []
    if task.eval_rows:
        test = open_stream(**place, split=task.dataset_test_split, optional=True)
        held_out = first_rows_of(test or stream, task.eval_rows, f"{source}, held out")
        held_out = _renamed(recipe, rewards, held_out)
        if test is None:
            stream = stream.skip(task.eval_rows)
            notes.append(
                f"{source} has no split {task.dataset_test_split!r}: its first {task.eval_rows} "
                "rows are held out."
            )
    needed = training.generation_batch_size // training.num_generations
    first = first_rows_of(stream, max(needed, _FIRST_ROWS), source)
    # A stream of fewer rows has come to its end here.
    check_prompt_count(len(first.rows), training, source=source)
    return RunData(_renamed(recipe, rewards, first), held_out, notes, stream)


def stream_of(
    recipe: Recipe,
    rewards: Sequence[Reward],
    data: Split,
    stream: IterableDataset,
    form: PromptForm,
) -> IterableDataset:
    """Return a stream as the trainer takes it.

    Args:
        data: its first rows, with renamed columns.
    """
    column = rows.prompt_column(data, recipe.task.prompt_column)
    # Any row may turn out to begin an answer.
    options = prompts.continuing_options(recipe.training.chat_template_kwargs)
    recipe.training.chat_template_kwargs = options
    build = prompts.prompt_builder(form)
    needed, gold = needed_columns(rewards), gold_columns(rewards)
    return stream_with_prompts(stream, recipe.column_map, column, build, needed, gold)


def model_source(recipe: Recipe) -> dict[str, Any]:
    """Return the keyword arguments that say which version of a model is read."""
    return {
        "revision": recipe.model.model_revision,
        "gguf_file": recipe.task.gguf_file,
        "trust_remote_code": recipe.training.trust_remote_code,
    }


def tokenizer_at_hand(recipe: Recipe) -> PreTrainedTokenizerBase | None:
    """Return the tokenizer of a recipe's model, or None where reading it may mean a download."""
    name = recipe.model.model_name_or_path
    if name == EMBEDDED_MODEL:
        return tiny_tokenizer()
    if name is None or not Path(name).is_dir():
        return None
    return loading.load_tokenizer(name, **model_source(recipe))


def form_of_prompts(
    recipe: Recipe, train: Split, tokenizer: PreTrainedTokenizerBase | None
) -> tuple[PromptForm, list[str]]:
    """Decide from the training rows how prompts are made; held-out prompts are made alike.

    Args:
        tokenizer: of the model. Where it is unknown, it is taken to have a chat template, as those
            of most models on the Hub have.

    Returns:
        The form, and sentences about it that the user should see.

    Raises:
        ConfigError: prompts that are rendered already, and a system prompt or an instruction.
    """
    task = recipe.task
    column = rows.prompt_column(train, task.prompt_column)
    raw_prompts = [row.get(column) for row in train.rows]
    rendered, notes = _are_rendered(task.rendered_prompts, raw_prompts, tokenizer)
    for name in ("system_prompt", "instruction"):
        if rendered and getattr(task, name) is not None:
            raise ConfigError(
                f"{name} cannot be put into prompts that were rendered with the chat template "
                f"already. Put it in where they are rendered, leave {name} out, or give "
                "--rendered_prompts false if the texts are what a user says."
            )
    if tokenizer and rendered and prompts.begins_twice(raw_prompts, tokenizer):
        notes.append(
            f"the prompts begin with {tokenizer.bos_token}, and the tokenizer adds another one, as "
            "in TRL. Leave it out of the texts for the model to read it once."
        )
    form = PromptForm(
        chat=tokenizer is None or tokenizer.chat_template is not None,
        rendered=rendered,
        answered=column == ANSWERED_COLUMN,
        system_prompt=task.system_prompt,
        instruction=task.instruction,
    )
    if form.answered:
        cut = _count(raw_prompts, lambda raw: isinstance(raw, list) and prompts.is_answered(raw))
        if cut:
            notes.append(
                f"{cut:,} of {len(raw_prompts):,} prompts are `messages` that end with an answer, "
                "which is left out."
            )
    return form, notes


def _are_rendered(
    wanted: bool | None, raw_prompts: Sequence[Any], tokenizer: PreTrainedTokenizerBase | None
) -> tuple[bool, list[str]]:
    """Return whether texts were rendered with a chat template, and notes on that."""
    if wanted is not None or tokenizer is None:
        return bool(wanted), []
    marked, texts = prompts.count_rendered(raw_prompts, tokenizer)
    if not marked:
        return False, []
    if marked == texts:
        note = (
            "the prompts hold the tokens of the chat template, so they are taken as they are "
            "(--rendered_prompts false makes each the turn of a user)."
        )
        return True, [note]
    note = (
        f"{marked:,} of {texts:,} prompts hold tokens of the chat template, and each becomes the "
        "turn of a user (--rendered_prompts true takes all of them as they are)."
    )
    return False, [note]


def _count(values: Sequence[Any], holds: Callable[[Any], bool]) -> int:
    return sum(map(holds, values))


def dataset_of(
    recipe: Recipe, rewards: Sequence[Reward], split: Split, form: PromptForm
) -> tuple[Dataset, Split]:
    """Return the usable rows of a split as the trainer takes them, and the checked split.

    The checked split names the unusable rows among its `bad` ones.
    """
    column = rows.prompt_column(split, recipe.task.prompt_column)
    build = prompts.prompt_builder(form)
    return rows.build_dataset(split, column, build, needed_columns(rewards), gold_columns(rewards))
