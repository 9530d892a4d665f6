"""Math-Shepherd: a process reward model that no one had to label steps for (Wang et al., arXiv 2312.08935).

    python recipes/math_shepherd.py                                # embedded model and problems, offline, on one core
    python recipes/math_shepherd.py --model_name_or_path ./model --cold_start_steps 0 --dataset_path ./gsm8k

The base answers --problems training problems --samples times. A step of an answer is worth the share of --continuations
from it that end right, by the first reward, and a process reward model on the same base learns these values:

    y_k   = 1/n Σ reward(continuation of steps 1..k)      the last step: the answer's own reward
    loss  = binary cross-entropy of σ(r_k) and y_k        r_k: the head at the last token of step k

On the held-out problems (--eval_rows) fresh answers are valued with --eval_continuations. σ(r_k), which needs none, is
compared with that, beside the mean training value of steps with the same number: what is known of a step that nobody
has read. The last step is worth what the answer earned, so the steps before it are shown by themselves too.

    correlation   Pearson's, of score and value
    AUC           how often, of a step from which most continuations end right and one from which most do not, the
                  first scores higher; a tie counts half

Steps are lines. The settings of data, model and sampling are those of recipes/gsm8k.py.
"""

import argparse
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import StatisticsError, correlation, fmean
from typing import Any

from grpo_hf.errors import ConfigError, DataError
from grpo_hf.runs.program import exit_on_error, quiet

HERE = Path(__file__).parent
RESULTS = "results.json"


def main(arguments: Sequence[str]) -> None:
    """Label samples, learn from them, and measure on held-out problems."""
    quiet()
    flags = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    flags.add_argument("--problems", type=int, default=384)
    flags.add_argument("--samples", type=int, default=4)
    flags.add_argument("--continuations", type=int, default=4)
    flags.add_argument("--eval_continuations", type=int, default=16)
    flags.add_argument("--reward_learning_rate", type=float, default=5e-4)
    flags.add_argument("--reward_epochs", type=int, default=3)
    flags.add_argument("--reward_batch_size", type=int, default=16)
    settings, rest = flags.parse_known_args(arguments)
    with exit_on_error():
        from transformers.utils import logging

        from grpo_hf.evaluation.answers import judging
        from grpo_hf.reward_models.model import RewardModel
        from grpo_hf.runs import preflight
        from grpo_hf.runs import train as run
        from grpo_hf.runs.recipe import read_recipe

        if not sys.stderr.isatty():
            logging.disable_progress_bar()
        recipe = read_recipe(rest, default=HERE / "math_shepherd_tiny.yaml")
        out = Path(recipe.training.output_dir)
        if (out / RESULTS).exists():
            raise ConfigError(f"{out} holds another run; give another --output_dir.")
        if recipe.task.eval_rows == 0:
            raise ConfigError(
                "eval_rows is 0, and there is nothing to measure on. Set --eval_rows higher."
            )
        seed, task = recipe.training.seed, preflight.check_task(recipe)
        prompts = run.prompts_of(recipe, task)
        tokenizer, held_out = prompts.tokenizer, prompts.held_out.to_list()
        train = prompts.train.shuffle(seed=seed).to_list()[: settings.problems]
        policy = run.policy_of(recipe)
        with judging(task.rewards[:1], recipe.training) as (judge,):
            sampled = (settings.samples, settings.continuations)
            labels = labelled("training", recipe, policy, tokenizer, train, judge, *sampled)
            model = RewardModel.on(policy, tokenizer, seed=seed)
            fit(model, labels, settings, seed)
            model.save(out / "reward_model")
            fresh = labelled(
                "held-out",
                recipe,
                policy,
                tokenizer,
                held_out,
                judge,
                1,
                settings.eval_continuations,
            )
        found = model.step_scores(fresh.prompt_ids, fresh.completion_ids, fresh.step_ends)
        scores = {
            "process reward model": [values.sigmoid().tolist() for values in found],
            "mean of the step's number": by_number(labels.values, fresh.values),
        }
        results = {name: measured(of, fresh.values) for name, of in scores.items()}
        report = {"settings": {**vars(settings), **recipe.given}, "results": results}
        (out / RESULTS).write_text(
            json.dumps(report, indent=1, default=str) + "\n", encoding="utf-8"
        )
        show(results, len(held_out), settings.eval_continuations)


def labelled(
    which: str,
    recipe: Any,
    policy: Any,
    tokenizer: Any,
    rows: list[Any],
    judge: Any,
    samples: int,
    n: int,
) -> Any:
    """Samples of the policy with the values of their steps; says how long it took."""
    from grpo_hf.reward_models.step_labels import labelled_steps
    from grpo_hf.rollout.sampling import sampling_of

    start, training = time.perf_counter(), recipe.training
    labels = labelled_steps(
        policy,
        tokenizer,
        rows,
        judge,
        samples=samples,
        n=n,
        sampling=sampling_of(training),
        max_new_tokens=training.max_completion_length,
        batch_size=training.per_device_train_batch_size,
        seed=training.seed + (which == "held-out"),
        template_options=training.chat_template_kwargs,
    )
    values = [value for of_row in labels.values for value in of_row]
    if not values:
        raise DataError(
            f"{judge.reward.name} could judge no step of {len(rows)} {which} problems. Check its columns."
        )
    print(
        f"{which}: {len(rows)} problems, {len(labels.values)} samples, {len(values)} steps of mean value "
        f"{fmean(values):.3f}, {n} continuations each, in {time.perf_counter() - start:.0f} s",
        flush=True,
    )
    return labels


def fit(model: Any, labels: Any, settings: argparse.Namespace, seed: int) -> None:
    """Learn the values, and say how it goes."""
    start = time.perf_counter()
    recent: list[float] = []

    def progress(step: int, steps: int, loss: float) -> None:
        recent.append(loss)
        if step % 50 == 0 or step == steps:
            print(
                f"step {step}/{steps}  loss {fmean(recent):.3f}  {time.perf_counter() - start:.0f} s",
                flush=True,
            )
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


def by_number(
    train: Sequence[Sequence[float]], held_out: Sequence[Sequence[float]]
) -> list[list[float]]:
    """For every held-out step the mean training value of steps with its number, or of all where there is none."""
    of_number: dict[int, list[float]] = {}
    for values in train:
        for number, value in enumerate(values):
            of_number.setdefault(number, []).append(value)
    everywhere = fmean(value for values in of_number.values() for value in values)
    means = {number: fmean(values) for number, values in of_number.items()}
    return [[means.get(number, everywhere) for number in range(len(values))] for values in held_out]


def measured(
    scores: Sequence[Sequence[float]], values: Sequence[Sequence[float]]
) -> dict[str, Any]:
    """How well scores tell the values of steps, of all of them and of those before the last."""
    found = {}
    for which, upto in (("all steps", None), ("before the last", -1)):
        pairs = [
            pair
            for s, v in zip(scores, values, strict=True)
            for pair in zip(s[:upto], v[:upto], strict=True)
        ]
        columns = list(zip(*pairs, strict=True)) or [(), ()]
        found[which] = {"steps": len(pairs), "correlation": pearson(*columns), "auc": auc(*columns)}
    return found


def pearson(scores: Sequence[float], values: Sequence[float]) -> float | None:
    """The correlation; None where one side is constant."""
    try:
        return correlation(scores, values)
    except StatisticsError:
        return None


def auc(scores: Sequence[float], values: Sequence[float]) -> float | None:
    """How often a step with a value above a half scores higher than one with a value below; None without such a pair.

    >>> auc([0.9, 0.2, 0.2], [1.0, 0.75, 0.25])
    0.75
    """
    right = [score for score, value in zip(scores, values, strict=True) if value > 0.5]
    wrong = [score for score, value in zip(scores, values, strict=True) if value < 0.5]
    won = sum((r > w) + (r == w) / 2 for r in right for w in wrong)
    return won / (len(right) * len(wrong)) if right and wrong else None


def show(results: dict[str, Any], problems: int, n: int) -> None:
    """Print the results as a table."""
    from rich.console import Console
    from rich.table import Table

    title = f"{problems} held-out problems; steps valued by {n} continuations"
    table = Table("score", "steps", "number", "correlation", "AUC", title=title)
    for name, found in results.items():
        for which, one in found.items():
            numbers = (
                "" if one[key] is None else f"{one[key]:.3f}" for key in ("correlation", "auc")
            )
            table.add_row(name, which, str(one["steps"]), *numbers)
    Console(highlight=False, width=110).print(table)


if __name__ == "__main__":
    main(sys.argv[1:])
