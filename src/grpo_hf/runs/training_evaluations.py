"""What a run evaluates by itself: held-out prompts at `eval_steps`, and all its sets at the end."""

import json
from collections.abc import Callable, Container, Mapping, Sequence
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from ..evaluation.comparison import (
    GreedyAnswers,
    answer_at,
    answer_greedily,
    compare_answers,
    compare_marks,
    not_comparable,
    write_answers,
)
from ..evaluation.evaluation_progress import JUDGING, EvaluationProgress
from ..evaluation.problem_set import SIDES, Answering, gold_of
from ..evaluation.statistics import Comparison, accuracy
from ..run_files import (
    EVALUATION_FILE,
    EVALUATIONS,
    OVER_TIME_FILE,
    append_lines,
    say_first,
    written_or_said,
)
from ..scoring.reward import Reward
from ..trainer import GRPOTrainer
from .evaluating import Policy, answering_of, evaluate_set, show_summary
from .evaluation_sets import EvaluationSet, SetReader, check_names
from .preflight import Prompts, Task, judges_of
from .recipe import Recipe

# Held-out prompts whose answers are kept at each evaluation.
_FOLLOWED = 6


def read_sets(
    recipe: Recipe, task: Task, prompts: Prompts, trained: Container[str] | None
) -> list[EvaluationSet]:
    """Return the sets that a run is evaluated on at its end, beside the greedy comparison.

    Args:
        trained: digests of the training prompts, None where they are not known.

    Raises:
        GrpoError: a set is not there, or lacks a column.
    """
    check_names(recipe.task.eval_data)
    run = Path(recipe.training.output_dir)
    judges = judges_of(task.rewards, task.eval_reward)
    reader = SetReader(run, recipe, judges, prompts.tokenizer, trained=trained)
    sets = [reader.read(asked) for asked in recipe.task.eval_data]
    if recipe.task.eval_samples and prompts.held_out is not None:
        source = task.held_out.source if task.held_out is not None else ""
        sets.insert(0, reader.held_out(prompts.held_out.to_list(), source))
    return sets


class HeldOut:
    """The held-out prompts of a run, which are answered greedily once.

    The base answers once in a run, and the adapter once at each step at which it is asked.

    Args:
        rows: with `prompt` and the columns that the reward reads.
        reward: an answer is right where it gives its full mark.
        trained: whether each prompt is in the training data, too; None if nobody knows.
    """

    def __init__(
        self,
        trainer: GRPOTrainer,
        rows: Sequence[dict[str, Any]],
        reward: Reward,
        trained: Sequence[bool] | None = None,
    ) -> None:
        self.rows = list(rows)
        self.trained = trained
        self.reward = reward
        self._trainer = trainer
        self._answers: dict[str, GreedyAnswers] = {}
        self._step: int | None = None

    def answers(
        self,
        side: str,
        progress: Callable[[str, str, int], None] = lambda side, kind, count: None,
    ) -> GreedyAnswers:
        """Return one side's answers, made now if they are not there yet."""
        trainer = self._trainer
        if not self.has_answers(side):
            self._answers[side] = answer_greedily(
                trainer.accelerator.unwrap_model(trainer.model),
                trainer.processing_class,
                self.rows,
                # It has a process already.
                trainer.run_rewards.entries_for([self.reward])[0],
                side=side,
                decoding=_answering(trainer).decoding,
                trainer_state=trainer.state,
                progress=progress,
            )
        if side == "adapter":
            self._step = trainer.state.global_step
        return self._answers[side]

    def has_answers(self, side: str) -> bool:
        """Return whether one side's answers are there, and are those of this step."""
        if side == "adapter" and self._step != self._trainer.state.global_step:
            self.forget_adapter()
        return side in self._answers

    def in_training(self) -> int | None:
        """Return how many of the prompts that were judged were trained on, if that is known."""
        if self.trained is None:
            return None
        count = 0
        for place, is_trained in enumerate(self.trained):
            count += is_trained and all(
                self.answers(side).right[place] is not None for side in SIDES
            )
        return count

    def over_time(self) -> dict[str, Any]:
        """Return the answers to a few prompts, evenly spread, as a line of `OVER_TIME_FILE`."""
        count = min(len(self.rows), _FOLLOWED)
        rows = []
        for place in (number * len(self.rows) // count for number in range(count)):
            row = self.rows[place]
            known = {"row": place, "prompt": row["prompt"], "gold": gold_of(self.reward, row)}
            said = {side: answer_at(found, place) for side, found in self._answers.items()}
            rows.append(known | said)
        return {"step": self._step, "rows": rows}

    def forget_adapter(self) -> None:
        """Forget what the adapter has answered, since it is another one now."""
        self._answers.pop("adapter", None)

    def answers_to(self, found: EvaluationSet) -> Mapping[str, GreedyAnswers]:
        """Return the answers that are there already to the problems of a set."""
        same = found.rewards[0] is self.reward and found.rows == self.rows
        return dict(self._answers) if same else {}


def compare(trainer: GRPOTrainer, held_out: HeldOut) -> Comparison | None:
    """Compare base and adapter on held-out prompts, or say why that cannot be done."""
    reason = not_comparable(trainer.model, uses_tools=bool(trainer.tools))
    if reason is not None:
        say_first(f"note: no comparison with the base: {reason}")
        return None
    say_first(f"comparing base and adapter on {len(held_out.rows)} held-out prompts")
    answers = {}
    sides = ("adapter", "base")
    parts = []
    for side in sides:
        if not held_out.has_answers(side):
            parts += [(side, "greedy"), (side, JUDGING)]
    # Where an evaluation was at the last step, nothing is left to do.
    with EvaluationProgress("comparison", len(held_out.rows), parts, silent=not parts) as progress:
        for side in sides:
            answers[side] = held_out.answers(side, progress.update)
    if trainer.is_world_process_zero():
        file = Path(trainer.args.output_dir) / EVALUATION_FILE
        prompts = [row["prompt"] for row in held_out.rows]
        golds = [gold_of(held_out.reward, row) for row in held_out.rows]
        write_answers(file, prompts, answers, held_out.trained, golds)
    return compare_answers(**answers)


def evaluate_sets(
    trainer: GRPOTrainer, sets: Sequence[EvaluationSet], samples: int, held_out: HeldOut | None
) -> None:
    """Evaluate base and adapter on sets at the end of a run, and print the results.

    Args:
        held_out: prompts that are answered already, and may be one of the sets.
    """
    if not_comparable(trainer.model, uses_tools=bool(trainer.tools)) is not None:
        return
    run = Path(trainer.args.output_dir)
    model = trainer.accelerator.unwrap_model(trainer.model)
    policy = Policy(model, trainer.processing_class, run, trainer.args, trainer.state)
    for found in sets:
        for note in found.notes:
            say_first(f"note: {note}")
        say_first(f"evaluating base and adapter on {len(found.rows)} problems of {found.name}")
        # The card, the report and a push follow.
        with written_or_said(str(run / EVALUATIONS)):
            summary = evaluate_set(
                policy,
                found,
                _answering(trainer, samples),
                run / EVALUATIONS,
                answered=held_out.answers_to(found) if held_out is not None else {},
                among_others=len(sets) > 1,
            )
            show_summary(summary, run / EVALUATIONS, run)


class HeldOutAccuracy(TrainerCallback):
    """Logs the greedy accuracy of base and adapter on held-out prompts at each evaluation.

    The base answers once. `eval_accuracy`, `eval_accuracy_base` and `eval_accuracy_difference` with
    its interval are metrics of the evaluation, so `metric_for_best_model: accuracy` works. The
    answers to a few of the prompts are kept, so that a reader sees them change.
    """

    def __init__(self, trainer: GRPOTrainer, held_out: HeldOut) -> None:
        self._trainer = trainer
        self._held_out = held_out

    def on_evaluate(
        self, args: Any, state: Any, control: Any, metrics: dict[str, Any], **more: Any
    ) -> None:
        trainer = self._trainer
        base = None
        if not_comparable(trainer.model, uses_tools=bool(trainer.tools)) is None:
            base = self._held_out.answers("base").right
        found = self._numbers(self._held_out.answers("adapter").right, base)
        # The same dictionary decides which checkpoint is the best.
        metrics.update(found)
        trainer.log(found)
        if state.is_world_process_zero:
            line = json.dumps(self._held_out.over_time(), ensure_ascii=False, default=str)
            append_lines(Path(args.output_dir) / OVER_TIME_FILE, [line + "\n"])

    def on_train_end(self, args: Any, state: Any, control: Any, **more: Any) -> None:
        # The best checkpoint has taken the place of the last one.
        if args.load_best_model_at_end:
            self._held_out.forget_adapter()

    def _numbers(
        self, adapter: Sequence[bool | None], base: Sequence[bool | None] | None
    ) -> dict[str, float]:
        """Return the metrics; prompts on which the reward failed are left out."""
        if base is None:
            judged = [right for right in adapter if right is not None]
            return {"eval_accuracy": accuracy(judged).value} if judged else {}
        found = compare_marks(base, adapter)
        if found is None:
            return {}
        return {
            "eval_accuracy": found.adapter.value,
            "eval_accuracy_base": found.base.value,
            "eval_accuracy_difference": found.difference,
            "eval_accuracy_difference_low": found.low,
            "eval_accuracy_difference_high": found.high,
        }


def _answering(trainer: GRPOTrainer, samples: int = 0) -> Answering:
    args = trainer.args
    return answering_of(
        args,
        trainer.tools,
        max_new_tokens=trainer.max_completion_length,
        samples=samples,
        steps_per_generation=args.steps_per_generation,
    )
