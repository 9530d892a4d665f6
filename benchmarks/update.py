"""The update: reference pass, loss and backward, grpo-hf against TRL, and prefix-grouper where it is installed.

    python -m benchmarks.update [--rows p128 p512] [--repeats 5] [--threads 1] [--model PATH]

SmolLM2-135M-Instruct, LoRA r=16 on all linear layers, β = 0.04; in float32 on a CPU. Each side first computes its
numbers once, which also warms it up. They have to agree, or the exit code is 1: log-probabilities of the reference
within 1e-4, and the gradient within 1e-5 of its norm.

The row `silent` is a whole generation batch at β = 0 in which three groups of four have no signal: micro-batches from
each trainer's own `_prepare_inputs`, then loss and backward of all of them. The rows `gsm8k-...` are completions that
the model itself wrote (data/completions.json).

The row `limit` is how much of this machine's rate of matrix products the packed update `p128` turns into useful work
(flops.py counts it), with the product measured in the same run.
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
from .common import (
    OURS,
    PEER,
    TRL,
    Row,
    alternate,
    comparison,
    matmul_rate,
    options,
    prepare,
    ratio_row,
    report,
)
from .flops import Shape, useful_flops
from .sides import dtype, make_trainer

LIMIT_BAR = 0.55
MICRO_BATCH = 16  # rows; the row `silent` has two of them


@dataclass(frozen=True)
class Case:
    """One row: prompts of P tokens, N groups of G completions of at most C, or recorded ones."""

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
        """Its groups of token ids."""
        if self.recorded:
            rows = recorded(self.recorded)[:2]

            def fold(
                ids: list[int],
            ) -> list[int]:  # for a model with fewer tokens, to which the lengths matter
                return [token % vocabulary for token in ids]

            return [
                (fold(row["prompt_ids"]), [fold(ids) for ids in row["completion_ids"]])
                for row in rows
            ]
        count = self.size * self.groups
        lengths = [self.longest] * count if self.equal else ragged(count, self.longest)
        return crafted(self.prompt, lengths, self.groups, vocabulary)


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


def update(trainer: Any, batch: dict[str, Tensor]) -> Tensor:
    """Reference pass, loss and backward of one micro-batch; returns the reference's log-probabilities, (B, C)."""
    trainer.model.train()
    trainer.model.zero_grad()
    parts = [
        torch.cat([batch[f"prompt_{what}"], batch[f"completion_{what}"]], dim=1)
        for what in ("ids", "mask")
    ]
    with torch.no_grad(), use_adapter(trainer.model, adapter_name=None):
        reference = trainer._get_per_token_logps_and_entropies(
            trainer.model, *parts, batch["completion_ids"].shape[1], batch_size=len(parts[0])
        )[0]
    loss = trainer.compute_loss(trainer.model, {**batch, "ref_per_token_logps": reference})
    loss.backward()
    return reference * batch["completion_mask"]


def update_all(trainer: Any, batch: dict[str, Tensor]) -> None:
    """Loss and backward of all micro-batches that a trainer makes of a generation batch, without a reference."""
    trainer.model.train()
    trainer.model.zero_grad()
    steps = len(batch["prompt_ids"]) // MICRO_BATCH
    trainer.beta, trainer._step, trainer._buffered_inputs = 0.0, 0, None
    trainer.args.steps_per_generation = trainer.args.gradient_accumulation_steps = steps
    trainer.current_gradient_accumulation_steps = steps
    trainer._generate_and_score_completions = lambda _: dict(batch)
    for _ in range(steps):
        trainer.compute_loss(trainer.model, trainer._prepare_inputs([])).backward()
        trainer._step += 1
    trainer.beta = 0.04
    trainer.args.steps_per_generation = trainer.args.gradient_accumulation_steps = 1
    trainer.current_gradient_accumulation_steps = 1
    del trainer._generate_and_score_completions


def gradient(trainer: Any) -> Tensor:
    """All gradients in one vector."""
    return torch.cat(
        [weight.grad.flatten() for weight in trainer.model.parameters() if weight.grad is not None]
    )


def compare(case: Case, trainers: dict[str, Any], repeats: int) -> Row:
    """Check one case, then time it."""
    groups = case.make(trainers[TRL].model.config.get_text_config().vocab_size)
    trl = trainers[TRL]
    batch = to_batch(
        groups, trl._tokenizer.pad_token_id, trl.accelerator.device, silent=case.silent
    )
    run = update_all if case.silent else update
    sides = {name: trainer for name, trainer in trainers.items() if name != PEER or not case.silent}
    numbers = {name: (run(trainer, batch), gradient(trainer)) for name, trainer in sides.items()}
    checks = {name: _distance(numbers[TRL], numbers[name]) for name in sides if name != TRL}
    times = alternate(
        {name: partial(run, trainer, batch) for name, trainer in sides.items()}, repeats
    )
    lengths = [(len(prompt), [len(ids) for ids in completions]) for prompt, completions in groups]
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
        equal={name: _equal(check) for name, check in checks.items()},
    )


def _distance(
    expected: tuple[Tensor | None, Tensor], actual: tuple[Tensor | None, Tensor]
) -> dict[str, float]:
    """How far a side's numbers are from TRL's: gradient, relative to its norm; reference, the largest difference."""
    apart = {"gradient": ((expected[1] - actual[1]).norm() / expected[1].norm()).item()}
    if expected[0] is not None and actual[0] is not None:
        apart["reference"] = (expected[0] - actual[0]).abs().max().item()
    return apart


def _equal(check: dict[str, float]) -> bool:
    full = dtype() == torch.float32  # bfloat16 keeps 8 bits
    return check["gradient"] < (1e-5 if full else 5e-2) and check.get("reference", 0) < (
        1e-4 if full else 0.5
    )


def limit(row: Row, rate: Row) -> Row:
    """The row of the distance to the limit, of an update that has been timed."""
    ours = row["sides"][OURS]
    shares = [row["useful_flops"] / cost / rate["flops_per_s"] for cost in ours["cost"]["all"]]
    title = f"useful FLOP/s of {row['name']} / FLOP/s of a {rate['size']}³ product"
    line = ratio_row("limit", title, median(shares), LIMIT_BAR, shares, unit="")
    by_wall = row["useful_flops"] / ours["wall"]["median"] / rate["flops_per_wall_s"]
    return line | {"value_by_wall": by_wall, "matmul": rate}


def trainers_for(model: str, *, peer: bool = True) -> dict[str, Any]:
    """One trainer per side, each with a model of its own."""
    names = [TRL, OURS, *([PEER] if peer and find_spec("prefix_grouper") else [])]
    return {
        name: make_trainer(name, model, per_device_train_batch_size=MICRO_BATCH) for name in names
    }


def measure(arguments: Any, cases: Sequence[Case] = CASES) -> list[Row]:
    """All rows that were asked for."""
    trainers = trainers_for(arguments.model)
    rows = []
    for case in (case for case in cases if case.name in arguments.rows):
        rate = matmul_rate(dtype())
        rows.append(compare(case, trainers, arguments.repeats))
        for side, check in rows[-1]["checks"].items():
            print(
                f"{case.name}: {side} against TRL:",
                ", ".join(f"{k} {v:.1e} apart" for k, v in check.items()),
            )
        if case.name == "p128":
            again = matmul_rate(dtype())
            rows.append(limit(rows[-1], max(rate, again, key=lambda r: r["flops_per_s"])))
    return rows


def main(given: Sequence[str] | None = None) -> None:
    """Run the benchmark that the flags describe."""
    arguments = options(__doc__, [case.name for case in CASES]).parse_args(given)
    quiet()
    prepare(arguments)
    if not find_spec("prefix_grouper"):
        print("prefix-grouper is not installed (pip install -e '.[bench]'), so it is left out.")
    report("update", measure(arguments), arguments)


if __name__ == "__main__":
    main()
