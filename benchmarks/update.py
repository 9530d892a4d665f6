"""Compare the update (reference pass, loss and backward) of grpo-hf with TRL's.

    python -m benchmarks.update [--rows p128 p512] [--repeats 5] [--threads 1] [--model PATH]

prefix-grouper takes part too where it is installed. The model is SmolLM2-135M-Instruct with LoRA
r=16 on all linear layers, β = 0.04, in float32 on a CPU.

Before the timing, each side computes its numbers once, which also warms it up. The numbers have to
agree, or the exit code is 1: log-probabilities of the reference within 1e-4, and the gradient
within 1e-5 of its norm.

The row `silent` is a whole generation batch at β = 0 in which three groups of four have no signal.
Each trainer makes micro-batches with its own `_prepare_inputs`, then computes loss and backward of
all of them. The rows `gsm8k-...` use completions that the model itself wrote
(data/completions.json).

The row `limit` compares the packed update `p128` with the machine's rate of matrix products,
measured in the same run: it is the share of this rate that is useful work, as flops.py counts it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from statistics import median
from typing import Any

import torch
from torch import Tensor
from trl.trainer.utils import use_adapter

from grpo_hf.runs.program import quiet

from .batches import Group, crafted, ragged, recorded, to_batch
from .common import OURS, PEER, TRL, Row, add_dtype, dtype, options, prepare, report
from .flops import Shape, useful_flops
from .sides import OBJECTIVE, make_trainer
from .timing import alternate, comparison, matmul_rate, ratio_row

# The row `limit` has to reach this share of the machine's rate.
LIMIT_BAR = 0.55

# Rows of a micro-batch. The row `silent` has two micro-batches.
MICRO_BATCH = 16

# Prompts of a batch of recorded completions.
RECORDED_PROMPTS = 2

# How far the numbers of two sides may be apart. bfloat16 keeps 8 bits, so it rounds more coarsely.
GRADIENT_TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 5e-2}
REFERENCE_TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 0.5}


@dataclass(frozen=True)
class Case:
    """Case is one row of the benchmark: the shape of its batch, and the bar that it has to reach.

    Attributes:
        prompt: tokens of the longest prompt.
        longest: tokens of the longest completion.
        size: completions of a group.
        groups: number of groups.
        equal: whether all completions have the same length.
        silent: number of groups whose rewards are all equal.
        recorded: the kind of recorded completions to use instead of crafted ones.
    """

    name: str
    title: str
    bar: float | None = None
    prompt: int = 128
    longest: int = 128
    size: int = 8
    groups: int = 1
    equal: bool = False
    silent: int = 0
    recorded: str | None = None

    def make(self, vocabulary: int) -> list[Group]:
        """Return the groups of token ids."""
        if self.recorded:
            return recorded_groups(self.recorded, vocabulary)
        count = self.size * self.groups
        lengths = [self.longest] * count if self.equal else ragged(count, self.longest)
        return crafted(self.prompt, lengths, self.groups, vocabulary)


# A case without a bar is measured and shown, but cannot fail.
CASES = [
    Case("p128", "P=128, C≤128, G=8, 2 groups", 3.5, groups=2),
    Case("p512", "P=512, C≤128, G=8", 6, prompt=512),
    Case("c256", "P=64, C≤256, G=8", 2.2, prompt=64, longest=256),
    Case(
        "equal", "P=32, C=256, G=4, equal lengths", 1.0, prompt=32, longest=256, size=4, equal=True
    ),
    Case("silent", "P=128, C≤128, G=8, β=0, 3 of 4 groups without signal", 10, groups=4, silent=3),
    Case("gsm8k-0-shot", "2 GSM8K prompts, G=8, recorded", recorded="zero-shot"),
]


def names_of(cases: Sequence[Case]) -> list[str]:
    """Return the names of cases, which the flag --rows takes."""
    return [case.name for case in cases]


def recorded_groups(kind: str, vocabulary: int) -> list[Group]:
    """Return groups of recorded completions, with token ids that fit the vocabulary."""
    groups = []
    for row in recorded(kind)[:RECORDED_PROMPTS]:
        completions = [_folded(ids, vocabulary) for ids in row["completion_ids"]]
        groups.append((_folded(row["prompt_ids"], vocabulary), completions))
    return groups


def _folded(ids: list[int], vocabulary: int) -> list[int]:
    # For a model with fewer tokens than the recorded one. Only the lengths matter to the timing.
    return [token % vocabulary for token in ids]


def update(trainer: Any, batch: dict[str, Tensor]) -> Tensor:
    """Compute reference pass, loss and backward of one micro-batch.

    Returns:
        The log-probabilities of the reference, (B, C), 0 on padding.
    """
    trainer.model.train()
    trainer.model.zero_grad()
    input_ids = torch.cat([batch["prompt_ids"], batch["completion_ids"]], dim=1)
    attention_mask = torch.cat([batch["prompt_mask"], batch["completion_mask"]], dim=1)
    # Without its adapter the policy is the reference.
    with torch.no_grad(), use_adapter(trainer.model, adapter_name=None):
        reference = trainer._get_per_token_logps_and_entropies(
            trainer.model,
            input_ids,
            attention_mask,
            batch["completion_ids"].shape[1],
            batch_size=len(input_ids),
        )[0]
    loss = trainer.compute_loss(trainer.model, {**batch, "ref_per_token_logps": reference})
    loss.backward()
    return reference * batch["completion_mask"]


def update_all(trainer: Any, batch: dict[str, Tensor]) -> None:
    """Compute loss and backward of all micro-batches of a generation batch, without a reference."""
    trainer.model.train()
    trainer.model.zero_grad()
    steps = len(batch["prompt_ids"]) // MICRO_BATCH
    trainer.beta = 0.0
    # TRL 1.16 makes a new generation batch at step 0, or when the buffer is empty.
    trainer._step = 0
    trainer._buffered_inputs = None
    _set_accumulation(trainer, steps)
    # Replaces rollout and rewards, which are not part of the update. Each call gets a dictionary of
    # its own, so that no trainer can change the batch of the next call.
    trainer._generate_and_score_completions = lambda _: dict(batch)
    for _ in range(steps):
        trainer.compute_loss(trainer.model, trainer._prepare_inputs([])).backward()
        trainer._step += 1
    # The same trainer runs the other cases, which need its usual settings.
    trainer.beta = OBJECTIVE["beta"]
    _set_accumulation(trainer, 1)
    del trainer._generate_and_score_completions


def _set_accumulation(trainer: Any, steps: int) -> None:
    """Let a generation batch last for `steps` micro-batches, which make one optimizer step."""
    trainer.args.steps_per_generation = steps
    trainer.args.gradient_accumulation_steps = steps
    trainer.current_gradient_accumulation_steps = steps


def gradient(trainer: Any) -> Tensor:
    """Return all gradients in one vector."""
    parts = []
    for weight in trainer.model.parameters():
        # The weights of the base are frozen and have none.
        if weight.grad is not None:
            parts.append(weight.grad.flatten())
    return torch.cat(parts)


def compare(case: Case, trainers: dict[str, Any], repeats: int) -> Row:
    """Check that all sides of a case compute the same numbers, then time them."""
    trl = trainers[TRL]
    groups = case.make(trl.model.config.get_text_config().vocab_size)
    batch = to_batch(
        groups, trl._tokenizer.pad_token_id, trl.accelerator.device, silent=case.silent
    )
    run = update_all if case.silent else update
    actions = {}
    for name, trainer in trainers.items():
        # The silent case is about groups that can be skipped, which prefix-grouper does not do.
        if name != PEER or not case.silent:
            actions[name] = partial(run, trainer, batch)
    checks = check_numbers(actions, trainers)
    times = alternate(actions, repeats)
    lengths = _lengths(groups)
    # The silent groups are the last ones, and none of their work is useful.
    flops = useful_flops(
        Shape.of(trl.model), lengths[: len(lengths) - case.silent], reference=not case.silent
    )
    return comparison(
        case.name,
        case.title,
        times,
        case.bar,
        lengths=lengths,
        useful_flops=flops,
        checks=checks,
        equal={name: _is_equal(distances) for name, distances in checks.items()},
    )


def check_numbers(
    actions: dict[str, partial[Tensor | None]], trainers: dict[str, Any]
) -> dict[str, dict[str, float]]:
    """Run every side once; return how far its numbers are from TRL's."""
    numbers = {}
    for name, action in actions.items():
        reference = action()
        numbers[name] = (reference, gradient(trainers[name]))
    checks = {}
    for name in actions:
        if name != TRL:
            checks[name] = _distance(numbers[TRL], numbers[name])
    return checks


def _lengths(groups: Sequence[Group]) -> list[tuple[int, list[int]]]:
    """Return the length of every prompt and of its completions."""
    lengths = []
    for prompt, completions in groups:
        lengths.append((len(prompt), list(map(len, completions))))
    return lengths


def _distance(
    expected: tuple[Tensor | None, Tensor], actual: tuple[Tensor | None, Tensor]
) -> dict[str, float]:
    """Return how far a side's numbers are from TRL's.

    Args:
        expected: TRL's log-probabilities of the reference (None without a reference pass), and its
            gradient.
        actual: the same of the other side.

    Returns:
        The distance of the gradients, relative to the norm of TRL's, and the largest difference of
        the log-probabilities.
    """
    expected_reference, expected_gradient = expected
    actual_reference, actual_gradient = actual
    difference = (expected_gradient - actual_gradient).norm() / expected_gradient.norm()
    distances = {"gradient": difference.item()}
    if expected_reference is not None and actual_reference is not None:
        distances["reference"] = (expected_reference - actual_reference).abs().max().item()
    return distances


def _is_equal(distances: dict[str, float]) -> bool:
    # Written with <, so that NaN is not equal to anything.
    is_gradient_equal = distances["gradient"] < GRADIENT_TOLERANCE[dtype()]
    is_reference_equal = distances.get("reference", 0) < REFERENCE_TOLERANCE[dtype()]
    return is_gradient_equal and is_reference_equal


def limit(row: Row, rate: Row) -> Row:
    """Return the row `limit`: which share of the machine's rate a timed update uses.

    Args:
        row: the row of the update.
        rate: the rate of matrix products, from `matmul_rate`.
    """
    ours = row["sides"][OURS]
    shares = []
    for cost in ours["cost"]["all"]:
        shares.append(row["useful_flops"] / cost / rate["flops_per_s"])
    title = f"useful FLOP/s of {row['name']} / FLOP/s of a {rate['size']}³ product"
    limit_row = ratio_row("limit", title, median(shares), LIMIT_BAR, shares, unit="")
    by_wall = row["useful_flops"] / ours["wall"]["median"] / rate["flops_per_wall_s"]
    return limit_row | {"value_by_wall": by_wall, "matmul": rate}


def trainers_for(model: str, *, peer: bool = True) -> dict[str, Any]:
    """Return one trainer for each side, each with its own copy of the model."""
    names = [TRL, OURS]
    # prefix-grouper is an optional dependency.
    if peer and find_spec("prefix_grouper"):
        names.append(PEER)
    trainers = {}
    for name in names:
        trainers[name] = make_trainer(name, model, per_device_train_batch_size=MICRO_BATCH)
    return trainers


def measure(arguments: Any, cases: Sequence[Case] = CASES) -> list[Row]:
    """Return the rows that the flags ask for."""
    trainers = trainers_for(arguments.model)
    rows = []
    for case in cases:
        if case.name not in arguments.rows:
            continue
        rate_before = matmul_rate(dtype())
        row = compare(case, trainers, arguments.repeats)
        rows.append(row)
        print_checks(row)
        if case.name == "p128":
            # The rate changes with the load of the machine. The higher one is nearer to the limit.
            rate_after = matmul_rate(dtype())
            rates = (rate_before, rate_after)
            rows.append(limit(row, max(rates, key=lambda rate: rate["flops_per_s"])))
    return rows


def print_checks(row: Row) -> None:
    """Print how far the numbers of each side are from TRL's."""
    for side, distances in row["checks"].items():
        texts = []
        for name, distance in distances.items():
            texts.append(f"{name} {distance:.1e} apart")
        print(f"{row['name']}: {side} against TRL:", ", ".join(texts))


def main(given: Sequence[str] | None = None) -> None:
    """Run the benchmark that the flags describe."""
    parser = options(__doc__, names_of(CASES))
    add_dtype(parser)
    arguments = parser.parse_args(given)
    quiet()
    prepare(arguments)
    if not find_spec("prefix_grouper"):
        print("prefix-grouper is not installed (pip install -e '.[bench]'), so it is left out.")
    report("update", measure(arguments), arguments)


if __name__ == "__main__":
    main()
