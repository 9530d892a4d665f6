"""What a run evaluates by itself: held-out prompts at `eval_steps`, and all its sets at the end."""

import sys
from collections.abc import Sequence
from io import StringIO
from pathlib import Path
from typing import Any

from accelerate import PartialState
from rich.console import Console
from transformers import TrainerCallback

from ..evaluation.answers import greedy_completions, judging, right_answers
from ..evaluation.comparison import compare_with_base, not_comparable
from ..evaluation.evaluate import evaluate
from ..evaluation.evaluation_progress import EvaluationProgress
from ..evaluation.problem_set import Answering, ProblemSet
from ..evaluation.statistics import Comparison, accuracy
from ..evaluation.statistics import compare as comparison_of
from ..evaluation.summary_text import report_of
from ..models import adapters
from ..rollout.conversations import ToolUse
from ..rollout.sampling import sampling_of
from ..run_files import EVALUATION_FILE, EVALUATIONS, say, written_or_said
from ..scoring.model_tools import call_tool
from ..scoring.reward import Reward
from ..trainer import GRPOTrainer
from .evaluating import facts_of
from .evaluation_sets import EvaluationSet, SetReader, check_names
from .preflight import Prompts, Task
from .recipe import Recipe


def read_sets(recipe: Recipe, task: Task, prompts: Prompts) -> list[EvaluationSet]:
    """Return the sets that a run is evaluated on at its end, beside the greedy comparison.

    Raises:
        GrpoError: a set is not there, or lacks a column.
    """
    check_names(recipe.task.eval_data)
    rewards = [task.eval_reward, *(each for each in task.rewards if each is not task.eval_reward)]
    run = Path(recipe.training.output_dir)
    reader = SetReader(run, recipe, rewards, prompts.tokenizer)
    sets = [reader.read(asked) for asked in recipe.task.eval_data]
    if recipe.task.eval_samples and prompts.held_out is not None:
        source = task.held_out.source if task.held_out is not None else ""
        sets.insert(0, reader.held_out(prompts.held_out.to_list(), source))
    return sets


def compare(trainer: GRPOTrainer, held_out: Any, reward: Reward) -> Comparison | None:
    """Compare base and adapter on held-out prompts, or say why that cannot be done."""
    reason = not_comparable(trainer.model, uses_tools=bool(trainer.tools))
    if reason is not None:
        _say(f"note: no comparison with the base: {reason}")
        return None
    _say(f"comparing base and adapter on {len(held_out)} held-out prompts")
    file = Path(trainer.args.output_dir) / EVALUATION_FILE
    with EvaluationProgress("comparison", len(held_out)) as progress:
        return compare_with_base(
            trainer.accelerator.unwrap_model(trainer.model),
            trainer.processing_class,
            held_out.to_list(),
            # It has a process already.
            trainer.run_rewards.entries_for([reward])[0],
            decoding=_decoding(trainer),
            trainer_state=trainer.state,
            file=file if trainer.is_world_process_zero() else None,
            progress=progress.update,
        )


def evaluate_sets(trainer: GRPOTrainer, sets: Sequence[EvaluationSet], samples: int) -> None:
    """Evaluate base and adapter on sets at the end of a run, and print the results."""
    if not_comparable(trainer.model, uses_tools=bool(trainer.tools)) is not None:
        return
    args = trainer.args
    run = Path(args.output_dir)
    model = trainer.accelerator.unwrap_model(trainer.model)
    answering = Answering(
        samples=samples, sampling=sampling_of(args), seed=args.seed, **_decoding(trainer)
    )
    for found in sets:
        for note in found.notes:
            _say(f"note: {note}")
        _say(f"evaluating base and adapter on {len(found.rows)} problems of {found.name}")
        # The card, the report and a push follow.
        with (
            written_or_said(str(run / EVALUATIONS)),
            judging(found.rewards, args) as rewards,
            EvaluationProgress(found.name, len(found.rows)) as progress,
        ):
            summary = evaluate(
                model,
                trainer.processing_class,
                ProblemSet(found.name, found.rows, rewards, found.category, found.source),
                answering,
                run / EVALUATIONS,
                facts=facts_of(model, run),
                trainer_state=trainer.state,
                progress=progress.update,
            )
            _say(_shown(report_of(summary, run / EVALUATIONS)))


def _shown(report: Any) -> str:
    """Return what rich makes of a report."""
    shown = StringIO()
    Console(file=shown, force_terminal=sys.stdout.isatty(), highlight=False).print(report)
    return shown.getvalue().rstrip("\n")


class HeldOutAccuracy(TrainerCallback):
    """Logs the greedy accuracy of base and adapter on held-out prompts at each evaluation.

    The base answers once. `eval_accuracy`, `eval_accuracy_base` and `eval_accuracy_difference` with
    its interval are metrics of the evaluation, so `metric_for_best_model: accuracy` works.
    """

    def __init__(self, trainer: GRPOTrainer, prompts: Prompts, task: Task) -> None:
        self._trainer = trainer
        self._rows = prompts.held_out.to_list() if prompts.held_out is not None else []
        self._reward = task.eval_reward
        self._base: list[bool | None] | None = None

    def on_evaluate(
        self, args: Any, state: Any, control: Any, metrics: dict[str, Any], **more: Any
    ) -> None:
        trainer = self._trainer
        if not_comparable(trainer.model, uses_tools=bool(trainer.tools)) is not None:
            found = self._numbers(self._right(), None)
        else:
            model = trainer.accelerator.unwrap_model(trainer.model)
            if self._base is None:
                with adapters.as_base(model):
                    self._base = self._right()
            found = self._numbers(self._right(), self._base)
        # The same dictionary decides which checkpoint is the best.
        metrics.update(found)
        trainer.log(found)

    def _right(self) -> list[bool | None]:
        trainer = self._trainer
        completions = greedy_completions(
            trainer.accelerator.unwrap_model(trainer.model),
            trainer.processing_class,
            [row["prompt"] for row in self._rows],
            **_decoding(trainer),
        )
        reward = trainer.run_rewards.entries_for([self._reward])[0]
        return right_answers(reward, self._rows, completions, trainer_state=trainer.state)

    def _numbers(
        self, adapter: Sequence[bool | None], base: Sequence[bool | None] | None
    ) -> dict[str, float]:
        """Return the metrics; prompts on which the reward failed are left out."""
        if base is None:
            judged = [right for right in adapter if right is not None]
            return {"eval_accuracy": accuracy(judged).value} if judged else {}
        pairs = []
        for before, after in zip(base, adapter, strict=True):
            if before is not None and after is not None:
                pairs.append((before, after))
        if not pairs:
            return {}
        found = comparison_of(*map(list, zip(*pairs, strict=True)))
        return {
            "eval_accuracy": found.adapter.value,
            "eval_accuracy_base": found.base.value,
            "eval_accuracy_difference": found.difference,
            "eval_accuracy_difference_low": found.low,
            "eval_accuracy_difference_high": found.high,
        }


def _decoding(trainer: GRPOTrainer) -> dict[str, Any]:
    """Return how a run's prompts are answered, beside which tokens are drawn."""
    args = trainer.args
    return {
        "max_new_tokens": trainer.max_completion_length,
        "template_options": args.chat_template_kwargs,
        "tool_use": _tool_use(trainer),
        # Both fit by the user's word, and answering keeps no gradients.
        "batch_size": max(args.per_device_eval_batch_size, args.per_device_train_batch_size),
    }


def _tool_use(trainer: GRPOTrainer) -> ToolUse | None:
    """Return what the model may call in an evaluation, which is what it may call in training."""
    if not trainer.tools:
        return None
    return ToolUse(trainer.tools, call_tool, trainer.args.max_tool_calling_iterations)


def _say(text: str) -> None:
    if PartialState().is_main_process:
        say(text)
