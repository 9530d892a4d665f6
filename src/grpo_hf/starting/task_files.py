"""Writes the files of a new task: its recipe, its reward with examples, a schema for editors."""

import json
import keyword
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from ..data.rows import rows_to_hold_out, usual_prompt_column
from ..errors import OutputExistsError
from ..runs.defaults import defaults_for
from ..runs.recipe_schema import schema_text
from ..scoring.registry import load_reward, split_spec
from .data_facts import DataFacts, holds_its_answers, kind_of_answers
from .instructions import instruction_for
from .task_folder import RECIPE, REWARD, SCHEMA, refuse_existing

# What the written reward is called, by what the right answers are.
_FUNCTIONS = {
    "number": "right_number",
    "choice": "right_number",
    "label": "right_label",
    "short": "right_words",
    "long": "shared_words",
    "form": "one_sentence",
}
# A question with a number as answer that is longer than this takes working.
_PROBLEM_CHARACTERS = 80
# Tokens for working, where the data has only its result; of a sentence or two; and around the
# longest right answer: room for a sentence, in which a small model says a number or a name. Asked
# for a label it goes on talking, and what it says then names labels by chance: with that room the
# reward tells less and costs more.
_WORKING = 256
_SENTENCES = 64
_AROUND, _AROUND_LABEL = 32, 12
_LONGEST = 512
# About so many characters are a token.
_TOKEN_CHARACTERS = 3
_STEPS = 40
_MOST_HELD_OUT = 200
# Words that may stand before a right answer of a few.
_WORDS_AROUND = 20
# Names of the reward's own parameters, and of what a trainer passes.
_TAKEN = ("prompt", "prompts", "completion", "completions", "completion_ids", "columns", "limit")


@dataclass(frozen=True)
class Plan:
    """What a new task is made of.

    Args:
        folder: where its files go.
        prompt, gold: the columns of the prompt and of the right answer.
        reward: the reward that was asked for; by default one is written.
    """

    folder: Path
    model: str
    facts: DataFacts
    prompt: str
    gold: str | None
    reward: str | None = None

    @property
    def kind(self) -> str:
        """What the right answers are; `choice` for a number of the prompt, `form` for none."""
        if self.gold is None:
            return "form"
        kind = kind_of_answers(self.facts.values(self.gold))
        if kind == "number" and holds_its_answers(self.facts, self.prompt, self.gold):
            return "choice"
        return kind

    @property
    def form(self) -> str:
        """What an answer consists of: `problem` for a number that takes working, else `kind`."""
        kind = self.kind
        if kind == "number" and self.facts.columns[self.prompt].length > _PROBLEM_CHARACTERS:
            return "problem"
        return kind

    @property
    def instruction(self) -> str | None:
        """What is asked for below every prompt, as far as the data says it."""
        labels = _spelled_labels(self) if self.kind == "label" else []
        return instruction_for(self.form, self.gold, labels)

    @property
    def named_reward(self) -> str | None:
        """The reward that needs no file: the one that was asked for, or the library's."""
        return self.reward or (self.kind if self.kind in ("gsm8k", "math") else None)

    @property
    def output_dir(self) -> str:
        """Where its run goes."""
        return f"runs/{self.folder.resolve().name}"

    @property
    def gold_parameter(self) -> str:
        """The name of the answer's column in the written reward."""
        name = self.gold or "answer"
        is_name = name.isidentifier() and not keyword.iskeyword(name)
        return name if is_name and name not in _TAKEN else "answer"


def write_task(plan: Plan) -> list[Path]:
    """Write the files of a new task, and return them.

    Raises:
        OutputExistsError: one of them exists, or cannot be written.
    """
    refuse_existing(plan.folder)
    texts = {RECIPE: recipe_text(plan)}
    if plan.named_reward is None:
        texts[REWARD] = reward_text(plan)
    texts[SCHEMA] = schema_text()
    written = []
    try:
        plan.folder.mkdir(parents=True, exist_ok=True)
        for name, text in texts.items():
            # "x" fails where another process has written the file in between.
            with (plan.folder / name).open("x", encoding="utf-8") as file:
                file.write(f"{text.rstrip()}\n")
            written.append(plan.folder / name)
    except OSError as error:
        raise OutputExistsError(
            f"{plan.folder} cannot be written ({error.strerror or error})."
        ) from error
    return written


def recipe_text(plan: Plan) -> str:
    """Return the recipe of a task, with comments."""
    spec = plan.named_reward or f"./{REWARD}:{_FUNCTIONS[plan.kind]}"
    length, length_why = _length(plan, plan.form)
    return _template(
        RECIPE,
        schema=SCHEMA,
        path=plan.folder / RECIPE,
        model=plan.model,
        place=plan.facts.place,
        prompt_column=None
        if plan.prompt == usual_prompt_column(plan.facts.columns)
        else plan.prompt,
        columns=_renames(plan),
        instruction=plan.instruction,
        # Another reward may want another form, which only its author knows.
        instructed=not plan.reward,
        rewards=[spec],
        output_dir=plan.output_dir,
        max_steps=_STEPS,
        length=length,
        length_why=length_why,
        eval_rows=_rows_to_hold_out(plan.facts),
        learning_rate=f"{defaults_for({})['learning_rate']:.1e}".replace("e-0", "e-"),
    )


def reward_text(plan: Plan) -> str:
    """Return a reward for the answers of a task, with rows of the data as examples."""
    own, other, longest = "", "", 1
    if plan.gold is not None:
        values = plan.facts.values(plan.gold)
        own = values[0]
        differing = [value for value in values if str(value) != str(own)]
        if plan.kind == "short":
            # An example of a wrong answer, so it may not end with the words of the right one.
            end = _words_of(own)
            differing = [each for each in differing if _words_of(each)[-len(end) :] != end]
            longest = max(len(_words_of(value)) for value in values) or 1
        other = differing[0] if differing else f"{own}1"
    return _template(
        f"{plan.kind}.py",
        file=plan.folder / REWARD,
        gold=plan.gold_parameter,
        own=own,
        other=other,
        own_literal=_literal(own),
        own_text=_literal(str(own)),
        other_text=_literal(str(other)),
        labels=tuple(_labels(plan)) if plan.kind == "label" else (),
        limit=longest + _WORDS_AROUND,
    )


def _words_of(value: Any) -> list[str]:
    """Return the words of an answer as the reward for answers of a few words reads them."""
    return re.findall(r"\w+", str(value).casefold())


def _template(name: str, **values: Any) -> str:
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"),
        undefined=StrictUndefined,
        keep_trailing_newline=True,
    )
    # A JSON text is a YAML value, too.
    environment.filters["quoted"] = lambda value: json.dumps(value, ensure_ascii=False)
    return environment.get_template(f"{name}.jinja").render(**values)


def _literal(value: Any) -> str:
    """Return a value as it stands in Python code within a docstring."""
    return repr(value).replace("\\", "\\\\").replace('"""', r"\"\"\"")


def _labels(plan: Plan) -> Sequence[str]:
    """Return the labels without case, as the reward compares them."""
    return [label.casefold() for label in _spelled_labels(plan)]


def _spelled_labels(plan: Plan) -> list[str]:
    """Return the labels as the data spells them, each once."""
    assert plan.gold is not None
    spelled: dict[str, str] = {}
    for value in plan.facts.values(plan.gold):
        spelled.setdefault(str(value).strip().casefold(), str(value).strip())
    return [spelled[label] for label in sorted(spelled)]


def _renames(plan: Plan) -> list[str]:
    """Return the entries of `columns`: the reward's name of the answer, and the data's."""
    if plan.gold is None:
        return []
    if plan.named_reward is None:
        wanted = [plan.gold_parameter]
    else:
        # A file's reward is loaded relative to a recipe, which is not there yet.
        spec = plan.named_reward
        is_file = ".py:" in split_spec(spec)[0]
        read = () if is_file else load_reward(spec).columns
        wanted = [name for name in read if name not in plan.facts.columns]
    if len(wanted) != 1 or wanted[0] == plan.gold:
        return []
    return [f"{wanted[0]}={plan.gold}"]


def _length(plan: Plan, form: str) -> tuple[int, str]:
    """Return how many tokens an answer may have, and how that was chosen."""
    if plan.gold is None:
        return _SENTENCES, "for a sentence of some length"
    if form == "problem":
        return _WORKING, "for working, which the data does not show"
    characters = plan.facts.columns[plan.gold].longest
    # Digits, and words of rare languages, take more tokens than other characters.
    longest = 2 * characters // _TOKEN_CHARACTERS
    around, words = (_AROUND_LABEL, "a few words") if form == "label" else (_AROUND, "a sentence")
    chosen = min(_LONGEST, around + longest)
    return chosen, (
        f"{around} for {words} around the answer and {chosen - around} for the longest right one, "
        f"of {characters} characters"
    )


def _rows_to_hold_out(facts: DataFacts) -> int | None:
    """Return how many rows are held out; None where there is a split for that."""
    if facts.has_test_split:
        return None
    return rows_to_hold_out(len(facts.split.rows), _MOST_HELD_OUT)
