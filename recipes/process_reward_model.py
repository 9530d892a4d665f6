"""A process reward model: where does a chain of reasoning go wrong? Trained on steps that people have judged.

    python recipes/process_reward_model.py --dataset_path ./bigbench_mistake                        # SmolLM2-135M
    python recipes/process_reward_model.py --dataset_path ./bigbench_mistake --model_name_or_path Qwen/Qwen2.5-0.5B

The data is BIG-Bench Mistake (Tyen et al., arXiv 2311.08516): a file TASK.jsonl per task, with rows of `input`, `steps`
and `mistake_index`, the first wrong step or null. The steps before it are right, so they are labelled 1, and it is
labelled 0. Those after it are not judged, and not labelled.

    r_k   = the head at the last token of step k, through an adapter on the frozen base
    p_k   = σ(r_k), the probability that step k is right, given that those before it are
    loss  = binary cross-entropy of p_k, over labelled steps

Each p_k speaks of a step whose forerunners are right, as a hazard does, so of a trace with a mistake they say that it
comes first at step k with P(k) ∝ (1 − p_k) Π_{j<k} p_j. The largest is the answer. A threshold would need a choice, and
the lowest p_k of all could lie behind the mistake, where training has defined none. Beside it stand what chance finds,
what always naming the last step does, and naming the place that is most frequent among the task's training traces.

`same_place` compares right steps with first mistakes at the same place in traces of the same task: how often the right
one scores higher. Over all places it would be high for a model that counts, because mistakes come late.
"""

import argparse
import json
import random
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from grpo_hf.errors import ConfigError, DataError
from grpo_hf.runs.program import exit_on_error, quiet

RESULTS = "results.json"


@dataclass(frozen=True)
class Trace:
    """A problem, the steps of an answer to it, and the index of the first wrong one."""

    task: str
    problem: str
    steps: tuple[str, ...]
    mistake: int | None

    @property
    def labels(self) -> list[float]:
        """1 for each step before the mistake, 0 for the mistake; nothing is known of the steps after it."""
        return [1.0] * len(self.steps) if self.mistake is None else [1.0] * self.mistake + [0.0]


def flags() -> argparse.ArgumentParser:
    """What can be set."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0], allow_abbrev=False)
    parser.add_argument("--dataset_path", type=Path, required=True, help="folder with TASK.jsonl")
    parser.add_argument("--model_name_or_path", default="models/smollm2-135m-instruct")
    parser.add_argument("--train_rows", type=int, default=100, help="traces per task to learn from")
    parser.add_argument(
        "--eval_rows", type=int, default=60, help="traces per task that are held out"
    )
    parser.add_argument(
        "--max_length",
        type=int,
        default=512,
        help="tokens of a training trace, which ends at a step",
    )
    parser.add_argument(
        "--max_eval_length",
        type=int,
        default=2048,
        help="tokens of a held-out one; the rest is unread",
    )
    parser.add_argument("--learning_rate", type=float, default=2e-4)
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--batch_size", type=int, default=4)
    parser.add_argument("--lora_r", type=int, default=16)
    parser.add_argument("--lora_target_modules", nargs="+", default=["all-linear"])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output_dir", type=Path, default=Path("runs/process_reward_model"))
    return parser


def main(arguments: Sequence[str]) -> None:
    """Train on some traces of every task, and look for the mistakes in others."""
    quiet()
    settings = flags().parse_args(arguments)
    with exit_on_error():
        train, held_out = split(read(settings.dataset_path), settings)
        if (settings.output_dir / RESULTS).exists():
            raise ConfigError(
                f"{settings.output_dir} holds another run; give another --output_dir."
            )
        tokenizer, model = load(settings)
        fit(model, tokenizer, train, settings)
        model.save(settings.output_dir / "reward_model")
        start = time.perf_counter()
        longest = min(settings.max_eval_length, model.longest)
        rows = [encode(tokenizer, trace, longest) for trace in held_out]
        scores = model.step_scores(*columns(rows), batch_size=4)
        results = judge(train, held_out, [values.tolist() for values in scores])
        print(
            f"scored {len(held_out)} held-out traces in {time.perf_counter() - start:.0f} s",
            flush=True,
        )
        report = {
            "settings": {name: str(value) for name, value in vars(settings).items()},
            "tasks": results,
        }
        (settings.output_dir / RESULTS).write_text(
            json.dumps(report, indent=1) + "\n", encoding="utf-8"
        )
        show(results)


def read(folder: Path) -> list[Trace]:
    """Every trace of every file.

    Raises:
        DataError: no file, or a row of another form.
    """
    files = sorted(folder.glob("*.jsonl"))
    if not files:
        raise DataError(
            f"{folder} holds no *.jsonl; expected BIG-Bench Mistake's files. Check --dataset_path."
        )
    traces = []
    for file in files:
        for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), 1):
            try:
                row = json.loads(line)
                trace = Trace(file.stem, row["input"], tuple(row["steps"]), row["mistake_index"])
            except (ValueError, KeyError, TypeError) as error:
                raise DataError(
                    f"{file}:{number}: {type(error).__name__} {error}; expected a JSON row with input, steps and "
                    "mistake_index."
                ) from error
            if not trace.steps or (
                trace.mistake is not None and not 0 <= trace.mistake < len(trace.steps)
            ):
                raise DataError(
                    f"{file}:{number}: mistake_index is {trace.mistake} of {len(trace.steps)} steps; expected the "
                    "index of one, or null."
                )
            traces.append(trace)
    return traces


def split(traces: Sequence[Trace], settings: argparse.Namespace) -> tuple[list[Trace], list[Trace]]:
    """(train, held out), drawn in every task alike."""
    train, held_out = [], []
    for task in sorted({trace.task for trace in traces}):
        own = [trace for trace in traces if trace.task == task]
        random.Random(f"{settings.seed}/{task}").shuffle(own)
        held_out += own[: settings.eval_rows]
        train += own[settings.eval_rows :][: settings.train_rows]
    if not train or all(trace.mistake is None for trace in held_out):
        raise DataError(
            f"{len(train)} traces to learn from, {len(held_out)} held out; expected some of both, and mistakes. Set "
            "--train_rows and --eval_rows to fit the data."
        )
    return train, held_out


def load(settings: argparse.Namespace) -> tuple[Any, Any]:
    """The tokenizer, and an untrained reward model beside a policy that stays as it is."""
    import torch
    from peft import LoraConfig, get_peft_model
    from trl import ModelConfig

    from grpo_hf.models.loading import load_base, load_tokenizer
    from grpo_hf.reward_models.model import RewardModel

    targets = settings.lora_target_modules
    targets = targets[0] if targets == ["all-linear"] else targets
    lora = LoraConfig(
        r=settings.lora_r,
        lora_alpha=2 * settings.lora_r,
        target_modules=targets,
        task_type="CAUSAL_LM",
    )
    tokenizer = load_tokenizer(settings.model_name_or_path)
    base = load_base(ModelConfig(model_name_or_path=settings.model_name_or_path, dtype="float32"))
    device = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else "cpu"
    return tokenizer, RewardModel.on(
        get_peft_model(base, lora).to(device), tokenizer, seed=settings.seed
    )


def encode(tokenizer: Any, trace: Trace, max_length: int) -> tuple[list[int], list[int], list[int]]:
    """Prompt ids, completion ids, and the position of each step's last token, its line break.

    Steps that do not end within `max_length` tokens are left out.
    """
    from grpo_hf.data.prompts import prompt_builder, prompt_token_ids

    prompt = prompt_builder(chat=tokenizer.chat_template is not None)(trace.problem)
    (prompt_ids,) = prompt_token_ids([prompt], tokenizer)
    completion: list[int] = []
    ends: list[int] = []
    for step in trace.steps:
        ids = tokenizer(f"{step}\n", add_special_tokens=False)["input_ids"]
        if len(prompt_ids) + len(completion) + len(ids) > max_length:
            break
        completion += ids
        ends.append(len(completion) - 1)
    return prompt_ids, completion, ends


def lesson(
    tokenizer: Any, trace: Trace, max_length: int
) -> tuple[list[int], list[int], list[int], list[float]]:
    """A training row: it ends with the last labelled step, because later tokens change no score before."""
    prompt_ids, completion, ends = encode(tokenizer, trace, max_length)
    ends = ends[: len(trace.labels)]
    return prompt_ids, completion[: ends[-1] + 1 if ends else 0], ends, trace.labels[: len(ends)]


def columns(rows: Sequence[tuple[Any, ...]]) -> list[list[Any]]:
    return [list(column) for column in zip(*rows, strict=True)]


def fit(model: Any, tokenizer: Any, train: Sequence[Trace], settings: argparse.Namespace) -> None:
    """Learn from the training traces, and say how it goes."""
    longest = min(settings.max_length, model.longest)
    lessons = [one for trace in train if (one := lesson(tokenizer, trace, longest))[2]]
    if not lessons:
        raise DataError(
            f"no step of a training trace ends within {longest} tokens. Set --max_length higher."
        )
    tokens = sum(len(prompt) + len(completion) for prompt, completion, *_ in lessons)
    steps, wrong = sum(len(one[3]) for one in lessons), sum(one[3].count(0.0) for one in lessons)
    print(
        f"{len(lessons)} traces, {tokens} tokens, {steps} labelled steps, {wrong} of them wrong; "
        f"{len(train) - len(lessons)} traces have no step within {longest} tokens",
        flush=True,
    )
    start = time.perf_counter()
    recent: list[float] = []

    def progress(step: int, steps: int, loss: float) -> None:
        recent.append(loss)
        if step % 10 == 0 or step == steps:
            mean = sum(recent) / len(recent)
            print(
                f"step {step}/{steps}  loss {mean:.3f}  {time.perf_counter() - start:.0f} s",
                flush=True,
            )
            recent.clear()

    model.fit_steps(
        *columns(lessons),
        learning_rate=settings.learning_rate,
        epochs=settings.epochs,
        batch_size=settings.batch_size,
        seed=settings.seed,
        progress=progress,
    )
    print(f"{settings.epochs * tokens / (time.perf_counter() - start):.0f} tokens/s", flush=True)


def first_mistake(scores: Sequence[float]) -> int:
    """The k with the largest (1 − p_k) Π_{j<k} p_j, p = σ(score); −1 without steps.

    >>> first_mistake([3.0, -0.5, -4.0]), first_mistake([3.0, 2.0, 1.0])
    (1, 2)
    """
    import torch
    from torch.nn.functional import logsigmoid

    values = torch.tensor(scores, dtype=torch.float64)
    right = logsigmoid(values)
    return int((logsigmoid(-values) + right.cumsum(0) - right).argmax()) if scores else -1


def judge(
    train: Sequence[Trace], held_out: Sequence[Trace], scores: Sequence[Sequence[float]]
) -> dict[str, Any]:
    """For every task, how often the first mistake is found, and how often other ways would have found it."""
    from dataclasses import asdict

    from grpo_hf.evaluation.statistics import accuracy

    results: dict[str, Any] = {}
    for task in [*sorted({trace.task for trace in held_out}), "all"]:
        pairs = [
            pair for pair in zip(held_out, scores, strict=True) if task in (pair[0].task, "all")
        ]
        wrong = [(trace, values) for trace, values in pairs if trace.mistake is not None]
        if not wrong:
            continue
        frequent = {
            name: most_frequent_place(train, name) for name in {trace.task for trace, _ in wrong}
        }
        found = accuracy([first_mistake(values) == trace.mistake for trace, values in wrong])
        results[task] = asdict(found) | {
            "share": found.value,
            "chance": sum(1 / len(trace.steps) for trace, _ in wrong) / len(wrong),
            "last_step": sum(trace.mistake == len(trace.steps) - 1 for trace, _ in wrong)
            / len(wrong),
            "frequent_place": sum(trace.mistake == frequent[trace.task] for trace, _ in wrong)
            / len(wrong),
            "same_place": same_place(pairs),
        }
    return results


def most_frequent_place(train: Sequence[Trace], task: str) -> int | None:
    """Where first mistakes of a task are most often; None if training has none."""
    places = Counter(
        trace.mistake for trace in train if trace.task == task and trace.mistake is not None
    )
    return max(places, key=lambda place: (places[place], -place), default=None)


def same_place(pairs: Sequence[tuple[Trace, Sequence[float]]]) -> float | None:
    """The share of pairs (right step, first mistake) of one task and one place in which the right step scores higher.

    A tie counts half. None if there is no such pair.
    """
    right: dict[tuple[str, int], list[float]] = {}
    wrong: dict[tuple[str, int], list[float]] = {}
    for trace, values in pairs:
        for place, (label, value) in enumerate(zip(trace.labels, values, strict=False)):
            (right if label else wrong).setdefault((trace.task, place), []).append(value)
    won = [
        (r > w) + (r == w) / 2
        for key in right.keys() & wrong.keys()
        for r in right[key]
        for w in wrong[key]
    ]
    return sum(won) / len(won) if won else None


def show(results: dict[str, Any]) -> None:
    """Print the results as a table."""
    from rich.console import Console
    from rich.table import Table

    heads = (
        "task",
        "traces",
        "found",
        "95% interval",
        "chance",
        "last step",
        "frequent place",
        "same place",
    )
    table = Table(*heads, title="first mistakes of held-out traces")
    for task, one in results.items():
        numbers = (one["chance"], one["last_step"], one["frequent_place"])
        auc = "" if one["same_place"] is None else f"{one['same_place']:.3f}"
        interval = f"{one['low']:.3f} to {one['high']:.3f}"
        others = [f"{number:.3f}" for number in numbers]
        table.add_row(task, str(one["total"]), f"{one['share']:.3f}", interval, *others, auc)
    Console(highlight=False, width=120).print(table)


if __name__ == "__main__":
    main(sys.argv[1:])
