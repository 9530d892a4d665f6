"""Train a process reward model that finds the first mistake in a chain of reasoning.

    python recipes/process_reward_model.py --dataset_path ./data     # SmolLM2-135M
    python recipes/process_reward_model.py --dataset_path ./data --model_name_or_path ./model

The data is BIG-Bench Mistake (Tyen et al., arXiv 2311.08516), labelled by people. It has one file
TASK.jsonl per task, with the columns `input`, `steps` and `mistake_index`. `mistake_index` is the
first wrong step, or null. The steps before the mistake are right and get the label 1. The mistake
gets the label 0. Nobody judged the steps after the mistake, so they get no label.

    r_k   = the head's output at the last token of step k, through an adapter on the frozen base
    p_k   = σ(r_k), the probability that step k is right if all steps before it are right
    loss  = binary cross-entropy of p_k, over labelled steps

p_k is conditional on right steps before it, like a hazard rate. So for a trace with a mistake, the
probability that the first mistake is step k is P(k) ∝ (1 − p_k) Π_{j<k} p_j. The model's answer is
the k with the largest P(k). This needs no threshold. The step with the lowest p_k would be a worse
answer: it could lie after the mistake, where the training data defines no label.

The results compare the share of mistakes found with three baselines: a random step, always the last
step, and the most frequent place of a mistake in the training traces of the same task.

`same_place` compares right steps with first mistakes at the same place in traces of the same task.
It is the share of such pairs in which the right step has the higher score. A comparison over all
places would be high even for a model that only counts steps, because mistakes come late.
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
from grpo_hf.run_files import REPORT_FILE
from grpo_hf.runs.program import exit_on_error, quiet

RESULTS = "results.json"

# Traces per forward pass when held-out traces are scored.
SCORING_BATCH = 4

# Training prints its mean loss after this many steps.
STEPS_PER_REPORT = 10

# Wide enough for all columns of the results on one line.
CONSOLE_WIDTH = 120

HEADINGS = (
    "task",
    "traces",
    "found",
    "95% interval",
    "chance",
    "last step",
    "frequent place",
    "same place",
)

# Prompt ids, completion ids, and the position of each step's last token in the completion.
Encoded = tuple[list[int], list[int], list[int]]


@dataclass(frozen=True)
class Trace:
    """Trace is a problem, the steps of an answer to it, and the index of the first wrong step."""

    task: str
    problem: str
    steps: tuple[str, ...]
    mistake: int | None

    @property
    def labels(self) -> list[float]:
        """Return the labels: 1 for each step before the mistake, 0 for the mistake, then none."""
        if self.mistake is None:
            return [1.0] * len(self.steps)
        return [1.0] * self.mistake + [0.0]


def flags() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
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
        help="tokens of a held-out trace; the rest is not read",
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
    """Train on some traces of every task, and look for the mistakes in held-out traces."""
    quiet()
    settings = flags().parse_args(arguments)
    with exit_on_error():
        # Data and folder are checked first, because the model takes a while to load.
        train, held_out = split(read(settings.dataset_path), settings)
        if (settings.output_dir / RESULTS).exists():
            raise ConfigError(
                f"{settings.output_dir} holds a run already; give another --output_dir."
            )
        tokenizer, model = load(settings)
        fit(model, tokenizer, train, settings)
        model.save(settings.output_dir / "reward_model")
        scores = score(model, tokenizer, held_out, settings)
        results = judge(train, held_out, scores)
        # The file marks the folder as used, so a run that fails before can be repeated.
        write_results(results, settings)
        show(results, settings.output_dir / REPORT_FILE)


def read(folder: Path) -> list[Trace]:
    """Read every trace of every file in a folder.

    Raises:
        DataError: there is no file, or a row has another form.
    """
    files = sorted(folder.glob("*.jsonl"))
    if not files:
        raise DataError(
            f"{folder} holds no *.jsonl; expected BIG-Bench Mistake's files. Check --dataset_path."
        )
    traces = []
    for file in files:
        for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), 1):
            traces.append(read_trace(file.stem, line, place=f"{file}:{number}"))
    return traces


def read_trace(task: str, line: str, *, place: str) -> Trace:
    """Read one trace from a line of JSON; `place` names the line in error messages.

    Raises:
        DataError: the row has another form.
    """
    try:
        row = json.loads(line)
        trace = Trace(task, row["input"], tuple(row["steps"]), row["mistake_index"])
    # ValueError: no JSON. KeyError: a missing column. TypeError: no object, or steps is no list.
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"{place}: {type(error).__name__} {error}; "
            "expected a JSON row with input, steps and mistake_index."
        ) from error
    in_range = trace.mistake is None or 0 <= trace.mistake < len(trace.steps)
    if not trace.steps or not in_range:
        raise DataError(
            f"{place}: mistake_index is {trace.mistake} of {len(trace.steps)} steps; "
            "expected the index of one, or null."
        )
    return trace


def split(traces: Sequence[Trace], settings: argparse.Namespace) -> tuple[list[Trace], list[Trace]]:
    """Return training traces and held-out traces, drawn from every task in the same way.

    Raises:
        DataError: one of the two is empty, or the held-out traces have no mistake.
    """
    by_task: dict[str, list[Trace]] = {}
    for trace in traces:
        by_task.setdefault(trace.task, []).append(trace)
    # Sorted, because the order of the training traces decides the batches.
    train: list[Trace] = []
    held_out: list[Trace] = []
    for task, own in sorted(by_task.items()):
        # The seed contains the task, so another task in the folder does not change this split.
        random.Random(f"{settings.seed}/{task}").shuffle(own)
        held_out += own[: settings.eval_rows]
        train += own[settings.eval_rows :][: settings.train_rows]
    if not train or not with_mistake(held_out):
        raise DataError(
            f"{len(train)} traces to learn from, {len(held_out)} held out; expected some of both, "
            "and mistakes. Set --train_rows and --eval_rows to fit the data."
        )
    return train, held_out


def with_mistake(traces: Sequence[Trace]) -> list[Trace]:
    """Return the traces that have a mistake."""
    return [trace for trace in traces if trace.mistake is not None]


def load(settings: argparse.Namespace) -> tuple[Any, Any]:
    """Return the tokenizer, and an untrained reward model on the frozen base."""
    import torch
    from peft import LoraConfig, get_peft_model
    from trl import ModelConfig

    from grpo_hf.models.loading import load_base, load_tokenizer
    from grpo_hf.reward_models.model import RewardModel

    targets = settings.lora_target_modules
    # The command line always gives a list. PEFT knows "all-linear" as a string only; in a list it
    # would be the name of a module.
    if targets == ["all-linear"]:
        targets = "all-linear"
    lora = LoraConfig(
        r=settings.lora_r,
        lora_alpha=2 * settings.lora_r,
        target_modules=targets,
        task_type="CAUSAL_LM",
    )
    tokenizer = load_tokenizer(settings.model_name_or_path)
    # float32 is fast enough for models of this size, and every device supports it.
    base = load_base(ModelConfig(model_name_or_path=settings.model_name_or_path, dtype="float32"))
    device = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else "cpu"
    # `RewardModel.on` adds its own adapter beside a policy's adapter, with the same LoRA settings.
    # The policy itself is not trained here.
    policy = get_peft_model(base, lora).to(device)
    return tokenizer, RewardModel.on(policy, tokenizer, seed=settings.seed)


def encode(tokenizer: Any, trace: Trace, max_length: int) -> Encoded:
    """Return prompt ids, completion ids, and the position of each step's last token.

    The last token of a step is its line break. Steps that do not end within `max_length` tokens,
    the prompt included, are left out.
    """
    from grpo_hf.data.prompts import PromptForm, prompt_builder, prompt_token_ids

    form = PromptForm(chat=tokenizer.chat_template is not None)
    prompt = prompt_builder(form)(trace.problem)
    (prompt_ids,) = prompt_token_ids([prompt], tokenizer)
    completion: list[int] = []
    ends: list[int] = []
    for step in trace.steps:
        # Every step is tokenized by itself, so that no token crosses the end of a step.
        ids = tokenizer(f"{step}\n", add_special_tokens=False)["input_ids"]
        if len(prompt_ids) + len(completion) + len(ids) > max_length:
            break
        completion += ids
        ends.append(len(completion) - 1)
    return prompt_ids, completion, ends


def lesson(
    tokenizer: Any, trace: Trace, max_length: int
) -> tuple[list[int], list[int], list[int], list[float]]:
    """Return a training row: a trace as `encode` does, cut after its last label, and its labels.

    Attention is causal, so the tokens after the last labelled step would change no labelled score.
    """
    prompt_ids, completion, ends = encode(tokenizer, trace, max_length)
    ends = ends[: len(trace.labels)]
    # A prompt that fills `max_length` leaves no step; `lessons_of` drops such a trace.
    length = ends[-1] + 1 if ends else 0
    return prompt_ids, completion[:length], ends, trace.labels[: len(ends)]


def columns(rows: Sequence[tuple[Any, ...]]) -> list[list[Any]]:
    """Return the columns of a list of rows."""
    return list(map(list, zip(*rows, strict=True)))


def fit(model: Any, tokenizer: Any, train: Sequence[Trace], settings: argparse.Namespace) -> None:
    """Train the reward model, and print its progress.

    Raises:
        DataError: no step of a training trace fits into --max_length.
    """
    longest = min(settings.max_length, model.longest)
    lessons = lessons_of(tokenizer, train, longest)
    tokens = describe_lessons(lessons, len(train), longest)
    start = time.perf_counter()
    recent: list[float] = []

    def progress(step: int, steps: int, loss: float) -> None:
        recent.append(loss)
        if step % STEPS_PER_REPORT == 0 or step == steps:
            mean = sum(recent) / len(recent)
            seconds = time.perf_counter() - start
            print(f"step {step}/{steps}  loss {mean:.3f}  {seconds:.0f} s", flush=True)
            # The next line reports the mean since this one.
            recent.clear()

    model.fit_steps(
        *columns(lessons),
        learning_rate=settings.learning_rate,
        epochs=settings.epochs,
        batch_size=settings.batch_size,
        seed=settings.seed,
        progress=progress,
    )
    # Every epoch reads all tokens again.
    print(f"{settings.epochs * tokens / (time.perf_counter() - start):.0f} tokens/s", flush=True)


def lessons_of(tokenizer: Any, train: Sequence[Trace], longest: int) -> list[tuple[Any, ...]]:
    """Return the training rows of all traces that have a step within `longest` tokens.

    Raises:
        DataError: there is no such trace.
    """
    lessons = []
    for trace in train:
        row = lesson(tokenizer, trace, longest)
        ends = row[2]
        if ends:
            lessons.append(row)
    if not lessons:
        raise DataError(
            f"no step of a training trace ends within {longest} tokens. Set --max_length higher."
        )
    return lessons


def describe_lessons(lessons: Sequence[tuple[Any, ...]], traces: int, longest: int) -> int:
    """Print the size of the training data, and return its number of tokens."""
    tokens = 0
    steps = 0
    wrong = 0
    for prompt_ids, completion, _, labels in lessons:
        tokens += len(prompt_ids) + len(completion)
        steps += len(labels)
        wrong += labels.count(0.0)
    print(
        f"{len(lessons)} traces, {tokens} tokens, {steps} labelled steps, {wrong} of them wrong; "
        f"{traces - len(lessons)} traces have no step within {longest} tokens",
        flush=True,
    )
    return tokens


def score(
    model: Any, tokenizer: Any, held_out: Sequence[Trace], settings: argparse.Namespace
) -> list[list[float]]:
    """Return the scores of the steps of every held-out trace."""
    start = time.perf_counter()
    longest = min(settings.max_eval_length, model.longest)
    rows = []
    for trace in held_out:
        rows.append(encode(tokenizer, trace, longest))
    scores = []
    for values in model.step_scores(*columns(rows), batch_size=SCORING_BATCH):
        scores.append(values.tolist())
    seconds = time.perf_counter() - start
    print(f"scored {len(held_out)} held-out traces in {seconds:.0f} s", flush=True)
    return scores


def first_mistake(scores: Sequence[float]) -> int:
    """Return the k with the largest (1 − p_k) Π_{j<k} p_j, p = σ(score); −1 without steps.

    >>> first_mistake([3.0, -0.5, -4.0]), first_mistake([3.0, 2.0, 1.0])
    (1, 2)
    """
    import torch
    from torch.nn.functional import logsigmoid

    if not scores:
        return -1
    # Logarithms in double precision: the product of many small probabilities would underflow.
    values = torch.tensor(scores, dtype=torch.float64)
    right = logsigmoid(values)
    # The cumulative sum includes step k; the product goes over the steps before it.
    return int((logsigmoid(-values) + right.cumsum(0) - right).argmax())


def judge(
    train: Sequence[Trace], held_out: Sequence[Trace], scores: Sequence[Sequence[float]]
) -> dict[str, Any]:
    """Return for each task how often the model and the baselines find the first mistake.

    The entry "all" is over all tasks. A task without mistakes has no entry.
    """
    all_pairs = list(zip(held_out, scores, strict=True))
    pairs_by_task: dict[str, list[tuple[Trace, Sequence[float]]]] = {}
    for trace, values in all_pairs:
        pairs_by_task.setdefault(trace.task, []).append((trace, values))
    results: dict[str, Any] = {}
    # "all" comes last in the table.
    for task, pairs in [*sorted(pairs_by_task.items()), ("all", all_pairs)]:
        wrong = []
        for trace, values in pairs:
            if trace.mistake is not None:
                wrong.append((trace, values))
        if wrong:
            results[task] = found_mistakes(wrong, train) | {"same_place": same_place(pairs)}
    return results


def found_mistakes(
    wrong: Sequence[tuple[Trace, Sequence[float]]], train: Sequence[Trace]
) -> dict[str, Any]:
    """Return how often the model and the baselines find the mistake in traces that have one."""
    from dataclasses import asdict

    from grpo_hf.evaluation.statistics import accuracy

    by_model = []
    chances = []
    at_last_step = 0
    at_frequent_place = 0
    for trace, values in wrong:
        by_model.append(first_mistake(values) == trace.mistake)
        chances.append(1 / len(trace.steps))
        at_last_step += trace.mistake == len(trace.steps) - 1
        at_frequent_place += trace.mistake == most_frequent_place(train, trace.task)
    found = accuracy(by_model)
    return asdict(found) | {
        "share": found.value,
        "chance": sum(chances) / len(wrong),
        "last_step": at_last_step / len(wrong),
        "frequent_place": at_frequent_place / len(wrong),
    }


def most_frequent_place(train: Sequence[Trace], task: str) -> int | None:
    """Return the most frequent place of a first mistake in a task; None if there is no mistake."""
    places: Counter[int | None] = Counter()
    for trace in with_mistake(train):
        if trace.task == task:
            places[trace.mistake] += 1
    # Of equally frequent places the first one counts.
    return max(places, key=lambda place: (places[place], -place), default=None)


def same_place(pairs: Sequence[tuple[Trace, Sequence[float]]]) -> float | None:
    """Return the share of pairs in which the right step scores higher than the first mistake.

    A pair is a right step and a first mistake, at the same place in traces of the same task. A tie
    counts half. The result is None if there is no such pair.
    """
    right: dict[tuple[str, int], list[float]] = {}
    wrong: dict[tuple[str, int], list[float]] = {}
    for trace, values in pairs:
        # Not strict: steps after the mistake have a score and no label, and in a long trace the
        # last labelled steps may have no score.
        for place, (label, value) in enumerate(zip(trace.labels, values, strict=False)):
            scores_by_place = right if label else wrong
            scores_by_place.setdefault((trace.task, place), []).append(value)
    total = 0
    won = 0.0
    for key in right.keys() & wrong.keys():
        for right_score in right[key]:
            for wrong_score in wrong[key]:
                total += 1
                won += (right_score > wrong_score) + (right_score == wrong_score) / 2
    return won / total if total else None


def write_results(results: dict[str, Any], settings: argparse.Namespace) -> None:
    """Write the settings and the results to a file."""
    # Paths have no form in JSON, so all settings are written as text.
    texts = {name: str(value) for name, value in vars(settings).items()}
    report = json.dumps({"settings": texts, "tasks": results}, indent=1)
    (settings.output_dir / RESULTS).write_text(report + "\n", encoding="utf-8")


def show(results: dict[str, Any], page: Path) -> None:
    """Print the results as a table, which is also the report of the run."""
    from rich.table import Table

    from grpo_hf.runs.finished import show_and_keep

    table = Table(*HEADINGS, title="first mistakes of held-out traces")
    for task, result in results.items():
        share_won = result["same_place"]
        table.add_row(
            task,
            str(result["total"]),
            f"{result['share']:.3f}",
            f"{result['low']:.3f} to {result['high']:.3f}",
            f"{result['chance']:.3f}",
            f"{result['last_step']:.3f}",
            f"{result['frequent_place']:.3f}",
            # Empty if no place has both a right step and a first mistake.
            "" if share_won is None else f"{share_won:.3f}",
        )
    show_and_keep([table], page, width=CONSOLE_WIDTH)


if __name__ == "__main__":
    main(sys.argv[1:])
