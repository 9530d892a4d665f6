"""The sets that a run is evaluated on: its held-out prompts, public sets, and data of one's own."""

import json
from collections.abc import Container, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from ..data import rows
from ..data.known_sets import KNOWN_SETS, KnownSet, name_and_path, read_known_set
from ..data.overlap import which_are_in
from ..data.prompts import PromptForm, begins_answer
from ..data.readers import Split, read_split, split_file
from ..errors import ConfigError, DataError, did_you_mean
from ..run_files import HELD_OUT_SET, read_lines, write_or_say
from ..scoring.registry import load_reward
from ..scoring.reward import Reward
from .prompt_checks import check_rendered, notes_on_begun
from .recipe import Recipe
from .run_data import dataset_of, form_of_prompts

HELD_OUT_FILE = "held_out.jsonl"
# Digests of the prompts that a run trains on, a line each.
TRAINED_FILE = "trained_prompts.txt"

# Columns by which results are shown apart, where nobody names one.
_CATEGORIES = ("category", "type", "subject", "level", "difficulty")
# More values than these are no categories.
_MOST_CATEGORIES = 40


@dataclass(frozen=True)
class EvaluationSet:
    """A set as it was asked for, with the rewards that judge it.

    Args:
        rows: with `prompt` and the columns that the rewards read.
        rewards: an answer is right where the first of them gives its full mark.
        category: the column by which results are shown apart, if any.
        source: where the rows come from.
        notes: sentences about rows that were left out, and about prompts that begin an answer.
        trained: whether the prompt of each row is in the training data; None if nobody knows.
    """

    name: str
    rows: list[dict[str, Any]]
    rewards: list[Reward]
    category: str | None
    source: str
    notes: tuple[str, ...] = ()
    trained: Sequence[bool] | None = None

    def limited(self, limit: int | None) -> "EvaluationSet":
        """Return the set with its first rows only."""
        if limit is None:
            return self
        trained = None if self.trained is None else self.trained[:limit]
        return replace(self, rows=self.rows[:limit], trained=trained)


def keep_held_out(run: Path, held_out: Sequence[dict[str, Any]]) -> None:
    """Write the held-out rows with their prompts, on which the run can be evaluated later."""
    lines = []
    for row in held_out:
        lines.append(json.dumps(row, ensure_ascii=False, default=str) + "\n")
    write_or_say(run / HELD_OUT_FILE, "".join(lines))


def common_beginning(run: Path) -> str | None:
    """Return the beginning of an answer with which all held-out prompts of a run end, if it is one.

    Args:
        run: its folder, or that of one of its checkpoints.
    """
    files = [folder / HELD_OUT_FILE for folder in (run, run.parent)]
    file = next(filter(Path.is_file, files), None)
    prompts: list[Any] = [row.get("prompt") for row in read_lines(file)] if file else []
    if not all(isinstance(each, list) and begins_answer(each) for each in prompts):
        return None
    beginnings = {str(prompt[-1]["content"]) for prompt in prompts}
    return beginnings.pop() if len(beginnings) == 1 else None


def keep_trained(run: Path, trained: Iterable[str] | None) -> None:
    """Write the digests of the training prompts, by which later evaluations know them."""
    if trained is None:
        return
    write_or_say(run / TRAINED_FILE, "".join(f"{digest}\n" for digest in sorted(trained)))


def trained_prompts(run: Path) -> frozenset[str] | None:
    """Return the digests of a run's training prompts, or None where it has not kept them."""
    try:
        return frozenset((run / TRAINED_FILE).read_text(encoding="utf-8").split())
    except (OSError, ValueError):
        return None


def check_names(asked: Sequence[str]) -> None:
    """Check sets as far as their names go, before anything is read.

    Raises:
        ConfigError: two have the same name.
        DataError: a name is not known and no path.
    """
    names = []
    for each in asked:
        name, path = name_and_path(each)
        names.append(name)
        if each == HELD_OUT_SET or (name in KNOWN_SETS and path is None):
            continue
        if path is None or not path.exists():
            known = [*KNOWN_SETS, HELD_OUT_SET]
            raise DataError(
                f"--data {each}: no such file or folder, and no known set."
                f"{did_you_mean(name, known)} Known sets: {', '.join(known)}. Data of your own is "
                "given as NAME=PATH."
            )
    for name in names:
        if names.count(name) > 1:
            raise ConfigError(
                f"two sets are called {name!r}. Give one another name: --data other={name}."
            )


class SetReader:
    """Reads the sets of a run.

    Args:
        run: its output folder.
        recipe: its recipe, with which prompts are made.
        rewards: of the run, the one that says what is right first.
        tokenizer: of the run's model.
        trained: digests of the training prompts, None where they are not known.
        reward: the spec of a reward that says what is right on all sets, instead of theirs.
        category: a column, instead of the sets' own.
    """

    def __init__(
        self,
        run: Path,
        recipe: Recipe,
        rewards: Sequence[Reward],
        tokenizer: PreTrainedTokenizerBase,
        *,
        trained: Container[str] | None = None,
        reward: str | None = None,
        category: str | None = None,
    ) -> None:
        self._run = run
        self._recipe = recipe
        self._rewards = list(rewards)
        self._tokenizer = tokenizer
        self._trained = trained
        self._judge = None if reward is None else load_reward(reward, relative_to=Path.cwd())
        self._category = category

    def read(self, asked: str) -> EvaluationSet:
        """Return a set by `NAME`, `NAME=PATH` or `PATH`.

        Raises:
            DataError: it is not there, or lacks a column.
            HubUnreachable: it is on the Hub, and the Hub does not answer.
        """
        name, path = name_and_path(asked)
        if asked == HELD_OUT_SET:
            return self._kept_rows()
        if name in KNOWN_SETS:
            return self._known(KNOWN_SETS[name], path)
        assert path is not None
        return self._own(name, path)

    def _kept_rows(self) -> EvaluationSet:
        file = self._run / HELD_OUT_FILE
        if not file.is_file():
            raise DataError(
                f"{self._run} has no {HELD_OUT_FILE}: the run held out no rows. Say what to "
                "evaluate on: --data gsm8k, or --data NAME=PATH."
            )
        return self._with_notes(self.held_out(read_lines(file), str(file)))

    def held_out(self, found: list[dict[str, Any]], source: str) -> EvaluationSet:
        """Return the set of held-out rows, which have their prompts."""
        task = self._recipe.task
        form = PromptForm(True, system_prompt=task.system_prompt, instruction=task.instruction)
        return self._set(HELD_OUT_SET, Split(found, [], source), found, self._rewards, form)

    def _known(self, known: KnownSet, path: Path | None) -> EvaluationSet:
        split = read_known_set(known, path)
        rewards = [load_reward(known.reward), *self._rewards]
        form = self._form(split, "question")
        # A run for another task asks for another form of answer.
        if known.instruction is not None and self._rewards[0].name != known.reward:
            form = replace(form, system_prompt=None, instruction=known.instruction)
        return self._made(known.name, split, "question", form, rewards, known.category)

    def _own(self, name: str, path: Path) -> EvaluationSet:
        split = _own_rows(path)
        columns = rows.column_names(split.rows)
        renames = {}
        for new, old in self._recipe.column_map.items():
            if old in columns:
                renames[new] = old
        split = rows.rename_columns(split, renames)
        wanted = self._recipe.task.prompt_column
        column = rows.prompt_column(split, wanted if wanted in columns else None)
        form = self._form(split, column)
        return self._made(name, split, column, form, self._rewards, None)

    def _form(self, split: Split, column: str) -> PromptForm:
        task = replace(self._recipe.task, prompt_column=column)
        form, _ = form_of_prompts(replace(self._recipe, task=task), split, self._tokenizer)
        return form

    def _made(
        self,
        name: str,
        split: Split,
        column: str,
        form: PromptForm,
        rewards: list[Reward],
        category: str | None,
    ) -> EvaluationSet:
        """Give rows their prompts, and leave out those that cannot be used."""
        first = self._judge or rewards[0]
        _check_columns(first, split.rows, split.source)
        task = replace(self._recipe.task, prompt_column=column)
        dataset, checked = dataset_of(replace(self._recipe, task=task), [first], split, form)
        made = self._set(name, checked, dataset.to_list(), rewards, form, category)
        if checked.bad:
            made = replace(made, notes=(checked.describe_bad(),))
        return self._with_notes(made)

    def _with_notes(self, found: EvaluationSet) -> EvaluationSet:
        """Check that the prompts of a set can be rendered, and say which begin an answer.

        The set of an evaluation at the end of a training is read before it, and so is its mistake.
        """
        asked = [row["prompt"] for row in found.rows]
        training = self._recipe.training
        check_rendered(asked, found.source, self._tokenizer, training)
        return replace(found, notes=(*found.notes, *notes_on_begun(training, asked)))

    def _set(
        self,
        name: str,
        split: Split,
        found: list[dict[str, Any]],
        rewards: list[Reward],
        form: PromptForm,
        category: str | None = None,
    ) -> EvaluationSet:
        first = self._judge or rewards[0]
        _check_columns(first, found, split.source)
        columns = set(rows.column_names(found)) | {"prompt"}
        # The others are there to be looked at, where the data has what they read.
        judging = {first.name: first}
        for reward in rewards:
            if set(reward.columns) <= columns:
                judging.setdefault(reward.name, reward)
        category = self._category or category or _category_of(found)
        trained = which_are_in(self._trained, [row["prompt"] for row in found], form)
        judges = list(judging.values())
        return EvaluationSet(name, found, judges, category, split.source, trained=trained)


def _check_columns(reward: Reward, found: Sequence[dict[str, Any]], source: str) -> None:
    """Check that rows have the columns that a reward reads."""
    columns = rows.column_names(found)
    missing = sorted(set(reward.columns) - {*columns, "prompt"})
    if missing:
        raise DataError(
            f"{source}: the reward {reward.name} reads the column {missing[0]!r}, which is not "
            f"there. The columns are {', '.join(columns)}. Rename one (--columns "
            f"{missing[0]}=<its name there>), or name another reward: --reward NAME."
        )


def _own_rows(path: Path) -> Split:
    """Read a file, or the test split of a folder, or else its training split."""
    split: Split | None = None
    if path.is_dir():
        file = split_file(path, "test", optional=True) or split_file(path, "train", optional=False)
        path = file or path
    split = read_split(path=str(path))
    # Only an optional split may be missing.
    assert split is not None
    return split


def _category_of(found: Sequence[dict[str, Any]]) -> str | None:
    """Return the column that holds categories, if one does."""
    for name in _CATEGORIES:
        values = {str(row[name]) for row in found if row.get(name) is not None}
        if 1 < len(values) <= _MOST_CATEGORIES:
            return name
    return None
