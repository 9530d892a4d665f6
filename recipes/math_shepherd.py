r"""Math-Shepherd: train a process reward model without human labels for steps.

    python recipes/math_shepherd.py    # embedded model and problems, offline, on one core
    python recipes/math_shepherd.py --model_name_or_path ./model --cold_start_steps 0 \
        --dataset_path ./gsm8k

The base samples --samples answers to each of --problems training problems. The value of a step is
estimated with --continuations samples that continue the answer after the step: it is the share of
them that the first reward calls correct. A process reward model on the same base learns the values.

    y_k   = 1/n Σ reward(continuation of steps 1..k)      for the last step: the answer's own reward
    loss  = binary cross-entropy of σ(r_k) and y_k        r_k: the head at the last token of step k

For the evaluation, the base answers the held-out problems (--eval_rows), and the steps are valued
with --eval_continuations samples. σ(r_k) needs no samples and is compared with these values. The
baseline is the mean training value of steps with the same number, which does not read the step. The
last step's value is the answer's own reward, so the results for earlier steps are also shown
separately.

    correlation   Pearson's correlation of score and value
    AUC           the share of pairs, of a step whose value is above 1/2 and a step whose value is
                  below 1/2, in which the first step has the higher score; a tie counts half

A step is a line. The settings of data, model and sampling are those of recipes/gsm8k.py.

Source: Wang et al., arXiv 2312.08935.
"""

import argparse
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import StatisticsError, correlation, fmean
from typing import Any

from grpo_hf.errors import ConfigError, DataError
from grpo_hf.run_files import REPORT_FILE
from grpo_hf.runs.program import exit_on_error, quiet

HERE = Path(__file__).parent
RESULTS = "results.json"

# Training prints its mean loss after this many steps.
STEPS_PER_REPORT = 50

# Wide enough for all columns of the results on one line.
CONSOLE_WIDTH = 110

# The steps of an answer that a measurement includes. Python's slices up to None have all items, up
# to -1 all but the last.
MEASURED_STEPS = {"all steps": None, "before the last": -1}


def main(arguments: Sequence[str]) -> None:
    """Label samples, train on them, and measure on held-out problems."""
    quiet()
    settings, recipe_flags = flags().parse_known_args(arguments)
    with exit_on_error():
        from transformers.utils import logging

        from grpo_hf.evaluation.answers import judging
        from grpo_hf.reward_models.model import RewardModel
        from grpo_hf.runs import preflight
        from grpo_hf.runs import train as run

        if not sys.stderr.isatty():
            logging.disable_progress_bar()
        recipe = read(recipe_flags)
        out = Path(recipe.training.output_dir)
        seed = recipe.training.seed
        task = preflight.check_task(recipe)
        prompts = run.prompts_of(recipe, task)
        held_out = prompts.held_out.to_list()
        train = prompts.train.shuffle(seed=seed).to_list()[: settings.problems]
        policy = run.policy_of(recipe)
        # Only the first reward defines what is correct.
        with judging(task.rewards[:1], recipe.training) as (judge,):
            labeller = Labeller(recipe.training, policy, prompts.tokenizer, judge)
            labels = labeller.label("training", train, settings.samples, settings.continuations)
            # A second adapter on the base: it changes no samples of the policy.
            model = RewardModel.on(policy, prompts.tokenizer, seed=seed)
            fit(model, labels, settings, seed)
            model.save(out / "reward_model")
            fresh = labeller.label("held-out", held_out, 1, settings.eval_continuations)
        results = evaluate(model, labels, fresh)
        write_results(out / RESULTS, {**vars(settings), **recipe.given}, results)
        show(results, len(held_out), settings.eval_continuations, out / REPORT_FILE)


def flags() -> argparse.ArgumentParser:
    """Return a parser for the flags of this program; other flags go to the recipe."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--problems", type=int, default=384)
    parser.add_argument("--samples", type=int, default=4)
    parser.add_argument("--continuations", type=int, default=4)
    # More than in training: errors of the values would also lower the measured correlation.
    parser.add_argument("--eval_continuations", type=int, default=16)
    parser.add_argument("--reward_learning_rate", type=float, default=5e-4)
    parser.add_argument("--reward_epochs", type=int, default=3)
    parser.add_argument("--reward_batch_size", type=int, default=16)
    return parser


def read(flags: Sequence[str]) -> Any:
    """Return the settings of a run.

    Raises:
        ConfigError: the output folder holds a run already, or there are no held-out problems.
    """
    from grpo_hf.runs.recipe import read_recipe

    recipe = read_recipe(flags, default=HERE / "math_shepherd_tiny.yaml")
    out = Path(recipe.training.output_dir)
    # Checked before the cold start, which takes a minute or more.
    if (out / RESULTS).exists():
        raise ConfigError(f"{out} holds a run already; give another --output_dir.")
    if recipe.task.eval_rows == 0:
        raise ConfigError(
            "eval_rows is 0, and there is nothing to measure on. Set --eval_rows higher."
        )
    return recipe


@dataclass(frozen=True)
class Labeller:
    """Labeller samples answers of a policy and estimates the values of their steps."""

    training: Any
    policy: Any
    tokenizer: Any
    judge: Any

    def label(self, which: str, rows: list[Any], samples: int, continuations: int) -> Any:
        """Sample answers, return them with the values of their steps, and print a summary.

        Args:
            which: "training" or "held-out".
            rows: the problems.
            samples: answers per problem.
            continuations: samples per step.

        Raises:
            DataError: the reward could judge no step.
        """
        from grpo_hf.reward_models.step_labels import labelled_steps
        from grpo_hf.rollout.sampling import sampling_of

        start = time.perf_counter()
        training = self.training
        # Another seed for the held-out problems, so that their samples are independent.
        seed = training.seed + 1 if which == "held-out" else training.seed
        labels = labelled_steps(
            self.policy,
            self.tokenizer,
            rows,
            self.judge,
            samples=samples,
            n=continuations,
            sampling=sampling_of(training),
            max_new_tokens=training.max_completion_length,
            batch_size=training.per_device_train_batch_size,
            seed=seed,
            template_options=training.chat_template_kwargs,
        )
        values = flattened(labels.values)
        if not values:
            raise DataError(
                f"{self.judge.reward.name} could judge no step of {len(rows)} {which} problems. "
                "Check its columns."
            )
        seconds = time.perf_counter() - start
        print(
            f"{which}: {len(rows)} problems, {len(labels.values)} samples, {len(values)} steps "
            f"of mean value {fmean(values):.3f}, {continuations} continuations each, "
            f"in {seconds:.0f} s",
            flush=True,
        )
        return labels


def flattened(values_by_answer: Sequence[Sequence[float]]) -> list[float]:
    """Return the values of all steps of all answers in one list."""
    flat: list[float] = []
    for values in values_by_answer:
        flat += values
    return flat


def fit(model: Any, labels: Any, settings: argparse.Namespace, seed: int) -> None:
    """Train the reward model on the values of steps, and print its progress."""
    start = time.perf_counter()
    recent: list[float] = []

    def progress(step: int, steps: int, loss: float) -> None:
        recent.append(loss)
        if step % STEPS_PER_REPORT == 0 or step == steps:
            seconds = time.perf_counter() - start
            print(f"step {step}/{steps}  loss {fmean(recent):.3f}  {seconds:.0f} s", flush=True)
            # The next line reports the mean since this one.
            recent.clear()

    model.fit_steps(
        labels.prompt_ids,
        labels.completion_ids,
        labels.step_ends,
        labels.values,
        learning_rate=settings.reward_learning_rate,
        epochs=settings.reward_epochs,
        batch_size=settings.reward_batch_size,
        seed=seed,
        progress=progress,
    )


def evaluate(model: Any, labels: Any, fresh: Any) -> dict[str, Any]:
    """Return how well the reward model and the baseline predict the values of held-out steps."""
    by_model = []
    for scores in model.step_scores(fresh.prompt_ids, fresh.completion_ids, fresh.step_ends):
        # The loss makes σ(score) the prediction of the value.
        by_model.append(scores.sigmoid().tolist())
    baseline = by_number(labels.values, fresh.values)
    return {
        "process reward model": measured(by_model, fresh.values),
        "mean of the step's number": measured(baseline, fresh.values),
    }


def by_number(
    train: Sequence[Sequence[float]], held_out: Sequence[Sequence[float]]
) -> list[list[float]]:
    """Return for each held-out step the mean training value of steps with the same number.

    A number that no training step has gets the mean value of all training steps.
    """
    values_by_number: dict[int, list[float]] = {}
    for values in train:
        for number, value in enumerate(values):
            values_by_number.setdefault(number, []).append(value)
    # For answers with more steps than any training answer. `fmean` rounds once at the end, so the
    # order of the values does not matter.
    overall_mean = fmean(flattened(list(values_by_number.values())))
    means = {}
    for number, values in values_by_number.items():
        means[number] = fmean(values)
    predictions = []
    for values in held_out:
        numbers = range(len(values))
        predictions.append([means.get(number, overall_mean) for number in numbers])
    return predictions


def measured(
    scores: Sequence[Sequence[float]], values: Sequence[Sequence[float]]
) -> dict[str, Any]:
    """Return how well scores predict the values of steps: of all steps, and without the last ones.

    The result has the number of steps, the correlation and the AUC.
    """
    results = {}
    for which, end in MEASURED_STEPS.items():
        step_scores: list[float] = []
        step_values: list[float] = []
        for answer_scores, answer_values in zip(scores, values, strict=True):
            for score, value in zip(answer_scores[:end], answer_values[:end], strict=True):
                step_scores.append(score)
                step_values.append(value)
        results[which] = {
            "steps": len(step_scores),
            "correlation": pearson(step_scores, step_values),
            "auc": auc(step_scores, step_values),
        }
    return results


def pearson(scores: Sequence[float], values: Sequence[float]) -> float | None:
    """Return Pearson's correlation; None where one side is constant or has fewer than two items."""
    try:
        return correlation(scores, values)
    # `correlation` raises it for constant input and for fewer than two points.
    except StatisticsError:
        return None


def auc(scores: Sequence[float], values: Sequence[float]) -> float | None:
    """Return how often a step of value above 1/2 scores higher than a step of value below 1/2.

    A tie counts half. The result is None if there is no such pair of steps.

    >>> auc([0.9, 0.2, 0.2], [1.0, 0.75, 0.25])
    0.75
    """
    good = []
    bad = []
    for score, value in zip(scores, values, strict=True):
        # A value of exactly 1/2 says nothing about the step, so it is in neither list.
        if value > 0.5:
            good.append(score)
        elif value < 0.5:
            bad.append(score)
    if not good or not bad:
        return None
    won = 0.0
    for good_score in good:
        for bad_score in bad:
            won += (good_score > bad_score) + (good_score == bad_score) / 2
    return won / (len(good) * len(bad))


def write_results(file: Path, settings: dict[str, Any], results: dict[str, Any]) -> None:
    """Write the settings and the results to a file."""
    report = {"settings": settings, "results": results}
    # default=str: settings may hold paths, which JSON has no form for.
    file.write_text(json.dumps(report, indent=1, default=str) + "\n", encoding="utf-8")


def show(results: dict[str, Any], problems: int, continuations: int, page: Path) -> None:
    """Print the results as a table, which is also the report of the run."""
    from rich.table import Table

    from grpo_hf.runs.finished import show_and_keep

    title = f"{problems} held-out problems; steps valued by {continuations} continuations"
    table = Table("score", "steps", "number", "correlation", "AUC", title=title)
    for name, by_steps in results.items():
        for which, result in by_steps.items():
            cells = [name, which, str(result["steps"])]
            for key in ("correlation", "auc"):
                # None: the measure is not defined for these steps.
                cells.append("" if result[key] is None else f"{result[key]:.3f}")
            table.add_row(*cells)
    show_and_keep([table], page, width=CONSOLE_WIDTH)


if __name__ == "__main__":
    main(sys.argv[1:])
