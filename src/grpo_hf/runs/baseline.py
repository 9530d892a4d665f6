"""`grpo-hf baseline`: what the model of a recipe earns before it is trained.

GRPO learns from groups whose completions earn different rewards. Whether a base has any can be seen
in a minute, before a night of training.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from statistics import fmean
from typing import Any

import numpy as np
from accelerate import PartialState
from datasets import Dataset
from rich.console import Console
from rich.table import Table
from rich.text import Text

from ..data.completions import completion_text, last_said
from ..durability.dead_run import ALL_ALIKE, MOSTLY_CUT, NOTHING_EARNED
from ..errors import ConfigError
from ..evaluation.answers import completed_batches, is_right, judged, judging
from ..evaluation.evaluation_progress import JUDGING, EvaluationProgress
from ..evaluation.intervals import share_estimates
from ..evaluation.summary_text import short
from ..models import adapters
from ..rollout.sampling import GREEDY, Written
from ..run_files import say
from ..scoring.outcomes import Outcome
from ..scoring.scored_reward import ScoredReward
from ..scoring.scorer import weights_at
from . import preflight
from .evaluating import answering_of
from .recipe import Recipe
from .train import base_of, prompts_of
from .trained import no_bars_in_a_file

# Prompts whose best and worst answer is shown.
_SHOWN = 3
# From this share on most answers are cut off, and nearly all greedy ones are right.
_MOST, _NEARLY_ALL = 0.5, 0.9
# Up to this share of prompts with different rewards a training is slow; from this difference on a
# greedy answer is right more often than sampled ones.
_FEW, _MUCH = 0.25, 0.25


@dataclass(frozen=True)
class Answer:
    """An answer to a prompt.

    Args:
        earned: the sum of all rewards with their weights; None where none could judge, or one has
            failed.
        right: whether it gets the full mark of the reward that counts right answers.
        is_cut: whether it was cut off before its end.
    """

    text: str
    earned: float | None
    right: bool | None
    is_cut: bool


@dataclass(frozen=True)
class Baseline:
    """What a base answered to some prompts.

    Args:
        rows: the prompts.
        groups: sampled answers to each.
        greedy: the greedy answer to each.
    """

    rows: Sequence[dict[str, Any]]
    groups: Sequence[Sequence[Answer]]
    greedy: Sequence[Answer]

    @property
    def answers(self) -> list[Answer]:
        """The answers of all groups."""
        return [answer for group in self.groups for answer in group]

    @property
    def earned(self) -> list[float]:
        """What the answers earned that could be judged."""
        return _known(self.answers)

    @property
    def right_greedily(self) -> int:
        """Prompts whose greedy answer is right."""
        return sum(map(_is_right, self.greedy))

    @property
    def solved(self) -> int:
        """Prompts with a right answer."""
        return sum(any(answer.right for answer in group) for group in self.groups)

    @property
    def differing(self) -> int:
        """Prompts whose answers earn different rewards."""
        return sum(len(_marks(group)) > 1 for group in self.groups)

    @property
    def is_mostly_cut(self) -> bool:
        """Whether most answers were cut off."""
        return fmean(answer.is_cut for answer in self.answers) > _MOST


def show_baseline(recipe: Recipe, count: int) -> None:
    """Let the model of a recipe answer some training prompts, and print what came.

    Args:
        count: prompts, evenly chosen among those of the training.

    Raises:
        ConfigError: there are several processes.
        GrpoError: the first thing that is wrong with the recipe, as a training would find it.
    """
    if PartialState().num_processes > 1:
        raise ConfigError("grpo-hf baseline runs in one process: start it without a launcher.")
    no_bars_in_a_file()
    task = preflight.check_task(recipe, may_stream=True, may_use_tools=True, trains=False)
    prompts = prompts_of(recipe, task)
    for note in task.notes + prompts.notes:
        say(f"note: {note}")
    rows = _chosen(prompts.train, count)
    begun = time.monotonic()
    found = _answered(recipe, task, prompts, rows)
    limit = recipe.training.max_completion_length
    title = (
        f"{recipe.model.model_name_or_path} before training: {len(rows)} training prompts of "
        f"{task.train.source}, {recipe.training.num_generations} answers each as the training "
        f"samples them (temperature {recipe.training.temperature:g}), "
        f"{time.monotonic() - begun:.0f} s"
    )
    console = Console(highlight=False)
    console.print(Text(title))
    console.print(_table(found, task.eval_reward.name, limit))
    _show_answers(console, found)
    console.print(Text(verdict(found)))


def verdict(found: Baseline) -> str:
    """Return what a baseline says of a training, and what to change first."""
    count = len(found.groups)
    parts = []
    if not found.earned:
        parts.append(
            "No reward could judge any answer. `grpo-hf rewards check RECIPE` tries the rewards on "
            "rows of the data."
        )
    elif not found.differing and not any(found.earned):
        parts.append(
            "Every answer earned 0, and a training would have nothing to learn from. Read the "
            f"answers: {NOTHING_EARNED}"
        )
    elif not found.differing and all(answer.right for answer in found.answers):
        parts.append(
            "Every answer is right: a group in which all earn the same teaches nothing. Take "
            "harder prompts."
        )
    elif not found.differing:
        parts.append(
            f"All answers to a prompt earned the same, and that teaches nothing. {ALL_ALIKE}"
        )
    else:
        parts.append(
            f"{found.differing} of {count} prompts have answers that earn different rewards. From "
            "such prompts GRPO learns; the others of a step teach nothing."
        )
    share = fmean(map(_is_right, found.answers))
    if found.right_greedily >= (share + _MUCH) * count:
        parts.append(
            f"Greedily it is right far more often than sampled ({found.right_greedily / count:.0%} "
            f"and {share:.0%}), so more sampled answers are right at a lower --temperature: 0.7, "
            "then 0.5."
        )
    if 0 < found.differing <= _FEW * count:
        parts.append(
            "These are few: most of a step is for nothing. More teach with prompts that it solves "
            "now and then, more answers to each (--num_generations 16), an instruction that says "
            "plainly what is wanted, or prompts that begin the answer (docs/first_task.md)."
        )
    if found.right_greedily >= _NEARLY_ALL * count:
        parts.append(
            f"Greedily it answers {found.right_greedily} of {count} right, so the comparison at "
            "the end, which is greedy, has little room: take harder prompts or a stricter reward, "
            "or compare samples (grpo-hf eval RUN --samples 8)."
        )
    if found.is_mostly_cut:
        parts.append(f"Most answers were cut off at max_completion_length. {MOSTLY_CUT}")
    return "\n".join(parts)


def _chosen(train: Any, count: int) -> list[dict[str, Any]]:
    """Return rows that are evenly spread over the data, or the first ones of a stream."""
    if not isinstance(train, Dataset):
        return list(islice(train, count))
    count = min(count, len(train))
    return list(train.select([number * len(train) // count for number in range(count)]))


def _answered(
    recipe: Recipe, task: preflight.Task, prompts: preflight.Prompts, rows: list[dict[str, Any]]
) -> Baseline:
    """Sample a group of answers to each row, and judge them."""
    training = recipe.training
    copies = training.num_generations
    steps = training.steps_per_generation or training.gradient_accumulation_steps
    answering = answering_of(
        training,
        task.tools,
        max_new_tokens=training.max_completion_length,
        samples=copies,
        steps_per_generation=steps,
    )

    def write(copies: int, kind: str, sampling: Mapping[str, Any]) -> list[Written]:
        batches = completed_batches(
            model,
            prompts.tokenizer,
            [row["prompt"] for row in rows],
            copies=copies,
            sampling=sampling,
            seed=answering.seed,
            **answering.decoding | {"batch_size": max(1, answering.batch_size // copies)},
        )
        written = {}
        progress.update("base", kind, 0)
        for batch in batches:
            written.update(batch)
            progress.update("base", kind, len(batch))
        return [each for place in range(len(rows)) for each in written[place]]

    # The rewards' process starts before the model takes its memory.
    with judging(task.rewards, training) as scored:
        model = _model(recipe)
        judge = task.rewards.index(task.eval_reward)
        parts = [("base", kind) for kind in ("samples", "greedy", JUDGING)]
        with EvaluationProgress("baseline", len(rows), parts) as progress:
            answers = write(copies, "samples", answering.sampling)
            greedy = write(1, "greedy", GREEDY)
            progress.update("base", JUDGING, 0)
            asked = [row for row in rows for _ in range(copies)]
            outcomes = _outcomes(scored, asked, answers)
            greedy_outcomes = _outcomes(scored, rows, greedy)
        given = training.reward_weights
        if training.process_reward is not None:
            say("note: process_reward values steps; here the other rewards judge, each for itself.")
            given = None
        weights = weights_at(scored, given, step=0) or given or [1.0] * len(scored)
    flat = _weighed(answers, outcomes, weights, judge)
    groups = [flat[start : start + copies] for start in range(0, len(flat), copies)]
    return Baseline(rows, groups, _weighed(greedy, greedy_outcomes, weights, judge))


def _outcomes(
    scored: Sequence[ScoredReward], asked: Sequence[dict[str, Any]], answers: Sequence[Written]
) -> list[list[Outcome]]:
    """Return what each reward says of each answer."""
    completions = [each.completion for each in answers]
    return [judged(reward, asked, completions) for reward in scored]


def _weighed(
    answers: Sequence[Written],
    outcomes: Sequence[Sequence[Outcome]],
    weights: Sequence[float],
    judge: int,
) -> list[Answer]:
    """Return answers with what they earned.

    Args:
        outcomes: what each reward said of each answer.
        judge: the place of the reward that counts right answers.
    """
    weighed = []
    for place, each in enumerate(answers):
        earned = _earned([found[place] for found in outcomes], weights)
        text = completion_text(each.completion)
        weighed.append(Answer(text, earned, is_right(outcomes[judge][place]), each.is_cut))
    return weighed


def _earned(outcomes: Sequence[Outcome], weights: Sequence[float]) -> float | None:
    """Return the weighted sum of the rewards that could judge, as TRL adds them up."""
    # The trainer leaves such a completion out of its group.
    if any(outcome.failure is not None for outcome in outcomes):
        return None
    known = []
    for outcome, weight in zip(outcomes, weights, strict=True):
        if outcome.value is not None:
            known.append(weight * outcome.value)
    return sum(known) if known else None


def _model(recipe: Recipe) -> Any:
    """Return the model that a training would begin with, on its device."""
    model = base_of(recipe).to(recipe.training.device)
    if recipe.task.adapter is not None:
        model = adapters.continue_adapter(model, recipe.task.adapter)
    return model.eval()


def _table(found: Baseline, right: str, limit: int | None) -> Table:
    """Return the counts of a baseline."""
    table = Table(show_header=False)
    table.add_column("what")
    table.add_column("how many", justify="right")
    table.add_column("share", justify="right")
    total, prompts = len(found.answers), len(found.groups)

    def count(name: str, number: int, of: int) -> None:
        table.add_row(name, f"{number} of {of}", f"{number / of:.3f}")

    def reward(name: str, earned: Sequence[float]) -> None:
        if earned:
            ends = f"{min(earned):g} to {max(earned):g}"
            table.add_row(name, ends, f"{fmean(earned):.3f}")

    count(f"right answers (full mark of {right})", sum(map(_is_right, found.answers)), total)
    # Of a few prompts a share alone says little.
    shares = np.array([[fmean(map(_is_right, group))] for group in found.groups])
    (spread,) = share_estimates(shares)
    interval = f"{spread.low:.3f} to {spread.high:.3f}"
    table.add_row("  95% interval of right answers", interval, "")
    count("right greedily, as it is compared at the end", found.right_greedily, prompts)
    # A base that fails in form alone is never right, but earns a part.
    reward("  reward of the greedy answers", _known(found.greedy))
    count("prompts with a right answer", found.solved, prompts)
    count("prompts whose answers earn different rewards", found.differing, prompts)
    cut = sum(each.is_cut for each in found.answers)
    count("answers cut off" if limit is None else f"answers cut off at {limit} tokens", cut, total)
    reward("reward of the sampled answers", found.earned)
    return table


def _known(answers: Sequence[Answer]) -> list[float]:
    """Return what the answers earned that could be judged."""
    return [answer.earned for answer in answers if answer.earned is not None]


def _is_right(answer: Answer) -> bool:
    return bool(answer.right)


def _show_answers(console: Console, found: Baseline) -> None:
    """Show the greedy answer to some prompts, and the best and the worst of the sampled ones.

    Prompts come first whose sampled answers differ.
    """
    places = sorted(
        range(len(found.groups)),
        key=lambda place: -len(_marks(found.groups[place])),
    )
    for place in places[:_SHOWN]:
        ranked = sorted(found.groups[place], key=_rank)
        console.print(Text(f"\n{short(last_said(found.rows[place]['prompt']))}"))
        shown = [("greedy", found.greedy[place])]
        if ranked[-1].earned == ranked[0].earned:
            shown.append(("sampled", ranked[-1]))
        else:
            shown += [("best sampled", ranked[-1]), ("worst sampled", ranked[0])]
        for kind, answer in shown:
            mark = "none" if answer.earned is None else f"{answer.earned:g}"
            console.print(Text(f"  {kind}, reward {mark}: {short(answer.text)}"))
    console.print()


def _marks(group: Sequence[Answer]) -> set[float]:
    """Return the different rewards of the answers that could be judged, as advantages see them."""
    return set(_known(group))


def _rank(answer: Answer) -> float:
    return float("-inf") if answer.earned is None else answer.earned
