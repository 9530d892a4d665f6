"""Folders as runs leave them, made by the writers of a run, without a training."""

import json
import math
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import yaml
from support.callbacks import arguments, state

from grpo_hf.evaluation.comparison import GreedyAnswers, write_answers
from grpo_hf.reporting.environment_file import EnvironmentFile
from grpo_hf.reporting.metrics_file import MetricsFile
from grpo_hf.reporting.token_credit import CREDIT_FILE, Completion, Group
from grpo_hf.run_files import append_lines
from grpo_hf.scoring.outcomes import Outcome

HOSTILE = "</script><script>document.title='taken'</script><img src=x onerror=alert(1)>{{ 7 * 7 }}"


def metrics(step: int, peak: int | None = None) -> dict[str, float]:
    """Return what a step logs; its KL is large at one step."""
    part = 1 - math.exp(-step / 30)
    return {
        "loss": 0.001,
        "grad_norm": 0.1 + 0.05 * math.sin(step),
        "reward": 0.3 + 0.8 * part,
        "rewards/gsm8k/mean": 0.2 + 0.6 * part,
        "rewards/answer_format/mean": 0.5 + 0.5 * part,
        "kl": 17.0 if step == peak else 0.04 * part,
        "entropy": 0.8 - 0.5 * part,
        "completions/mean_length": 40 + math.sin(step / 5),
        "completions/min_length": 30.0,
        "completions/max_length": 48.0,
        "completions/clipped_ratio": 0.02,
        "frac_reward_zero_std": 0.1,
        "clip_ratio/low_mean": 0.001,
        "clip_ratio/high_mean": 0.002,
        "step_time": 2.0,
        "time/rollout": 1.0,
        "time/scoring": 0.25,
        "time/reference": 0.25,
        "num_tokens": 1000.0 * step,
        "epoch": step / 100,
    }


def credit_group(step: int, prompt: str = "2 + 2 =") -> Group:
    """Return a rollout of two completions, of which the first has two steps."""
    tokens, advantages = ["2 ", "+ 2\n", "#### ", "4", "<|end|>"], [1.0, 1.0, 0.5, 0.5, 0.5]
    steps = {"judge": [[1, 0.9], [3, 0.25]]}
    good = Completion(tokens, advantages, [4], 1.0, steps=steps)
    bad = Completion([HOSTILE, " 5", "<|end|>"], [-0.7, -0.7, -0.7], [2], 0.0)
    return Group(step, prompt, [good, bad])


def greedy_answers(
    texts: Sequence[str], right: Sequence[bool], cut: Sequence[bool] | None = None
) -> GreedyAnswers:
    """Return the answers of one side, as a reward of right and wrong has judged them."""
    outcomes = [Outcome(float(mark)) for mark in right]
    return GreedyAnswers(list(texts), outcomes, list(cut or [False] * len(texts)), 34)


def write_run(folder: Path, *, steps: int = 10, **settings: Any) -> Path:
    """Write the folder of a run that got better; `settings` go into its recipe."""
    args, file = arguments(folder), MetricsFile()
    EnvironmentFile().on_train_begin(args, state(0), None)
    file.on_train_begin(args, state(0), None)
    for step in range(1, steps + 1):
        file.on_log(args, state(step), None, logs=metrics(step, peak=steps // 2))
    file.on_log(args, state(steps), None, logs={"eval_reward": 0.9, "epoch": 1.0})
    file.on_log(args, state(steps), None, logs={"train_runtime": 150.0, "train_loss": 0.1})
    for step in range(1, steps + 1):
        group = credit_group(step, "2 + 2 =" if step % 3 == 0 else f"{step} + 1 =")
        append_lines(folder / CREDIT_FILE, [json.dumps(asdict(group)) + "\n"])
    prompts = [
        [{"role": "user", "content": f"What is {number} + 1? {HOSTILE}"}] for number in range(8)
    ]
    answers = {
        "adapter": greedy_answers(["#### 4"] * 8, [True] * 7 + [False]),
        "base": greedy_answers([HOSTILE] * 8, [True, False] * 4),
    }
    write_answers(folder / "evaluation.jsonl", prompts, answers)
    recipe = {"rewards": ["gsm8k", "answer_format"], "learning_rate": 1e-4, "seed": 0} | settings
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    return folder


def write_over_time(run: Path, steps: Sequence[int], prompts: int = 2) -> None:
    """Write the answers of evaluations during the training, which are right from step 2 on."""
    lines = []
    for step in steps:
        rows = []
        for place in range(0, 3 * prompts, 3):
            base = {"answer": HOSTILE, "right": False, "cut": True}
            adapter = {"answer": f"#### {step}", "right": step >= 2, "cut": False}
            sides = {"base": base, "adapter": adapter}
            rows.append({"row": place, "prompt": f"What is {place}?", "gold": HOSTILE} | sides)
        lines.append(json.dumps({"step": step, "rows": rows}) + "\n")
    append_lines(run / "answers_over_time.jsonl", lines)


def interval(value: float) -> dict[str, float]:
    return {"value": value, "low": value - 0.05, "high": value + 0.05}


def write_evaluation(run: Path, name: str = "svamp") -> None:
    """Write an evaluation as `grpo-hf eval` leaves it."""
    models: dict[str, Any] = {}
    for model, base in (("base", 0.4), ("adapter", 0.6)):
        models[model] = {
            "accuracy": interval(base),
            "pass_at": {str(k): interval(base + 0.05 * k) for k in (1, 2, 4)},
            "maj_at": {str(k): interval(base + 0.02 * k) for k in (1, 2, 4)},
        }
    category = {"problems": 2, "difference": interval(0.1)}
    category |= {"base": interval(0.3), "adapter": interval(0.4)}
    summary = {
        "set": name,
        "problems": 2,
        "samples": 4,
        "difference": {"accuracy": interval(0.2)},
        "by_category": {"sums": category},
        "flips": {"gained": [0], "lost": [1]},
    }
    folder = run / "evaluations"
    folder.mkdir()
    (folder / f"{name}.json").write_text(json.dumps(summary | models))
    rows = []
    for row, (before, after) in enumerate([(False, True), (True, False)]):
        rows.append(
            {
                "row": row,
                "prompt": HOSTILE,
                "gold": "4",
                "category": "sums",
                "base": {"greedy": HOSTILE, "greedy_right": before},
                "adapter": {"greedy": "#### 4", "greedy_right": after},
            }
        )
    append_lines(folder / f"{name}.jsonl", [json.dumps(row) + "\n" for row in rows])


def write_spike(run: Path, step: int) -> None:
    """Write the tokens of the KL, of which one makes a spike."""
    token = {"text": "9", "before": "= ", "after": HOSTILE, "kl": 1700.0, "policy": -0.1}
    token |= {"reference": -9.0, "place": 2, "prompt": HOSTILE, "completion": HOSTILE}
    rows = []
    for at in range(1, step + 1):
        mean, largest = (17.0, 1700.0) if at == step else (0.04, 1.0)
        row = {"step": at, "mean": mean, "median": 0.001, "max": largest, "tokens": 100}
        row |= {"total": 100 * mean, "largest": [token | {"kl": largest, "step": at}]}
        rows.append(json.dumps(row) + "\n")
    append_lines(run / "kl_tokens.jsonl", rows)
