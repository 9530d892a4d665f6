"""A whole step, grpo-hf against TRL: rollout, reference pass, rewards, loss, backward, optimizer.

    python -m benchmarks.step [--rows 4-shot] [--repeats 5] [--threads 1] [--model PATH]

Two GSM8K prompts with G = 8 from data/completions.json, through each trainer's own `training_step` and an optimizer
step with clipped gradients, with the two rewards of the GSM8K recipe.

How long completions are is chance, and a step costs about as much as its completions are long. So both sides sample
completions of the lengths that `record.py` once saw the model write for these prompts: a logits processor ends each row
at its length (`batches.forced_lengths`), and everything else samples freely. That the lengths came out is checked; an
exit code of 1 says that they did not. That both sides compute the same from equal completions is what update.py checks.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

from grpo_hf.runs.program import quiet

from .batches import forced_lengths, recorded
from .common import OURS, TRL, Row, alternate, comparison, options, prepare, report
from .sides import make_trainer

PROMPTS = 2
# Zero-shot as in this model's recipe. 8 rows of 785 tokens would take TRL 20 GB; 4, which tears our groups in two,
# take it 10.
ROWS = {
    "zero-shot": {"per_device_train_batch_size": 8, "gradient_accumulation_steps": 2},
    "4-shot": {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 4},
}
BARS = {"4-shot": 3.0, "zero-shot": 2.0}
TITLES = {
    "4-shot": "2 GSM8K prompts with 4 worked examples, G=8",
    "zero-shot": "2 GSM8K prompts, G=8",
}


def step(trainer: Any, rows: list[dict[str, Any]], lengths: Sequence[int]) -> None:
    """One optimizer step on a batch of prompts."""
    with forced_lengths(trainer, lengths):
        for _ in range(
            trainer.args.gradient_accumulation_steps
        ):  # the first samples for all of them
            trainer.training_step(trainer.model, rows, None)
    trainer.accelerator.clip_grad_norm_(trainer.model.parameters(), trainer.args.max_grad_norm)
    trainer.optimizer.step()
    trainer.model.zero_grad()


def compare(kind: str, model: str, repeats: int) -> Row:
    """Make both trainers, warm up on one kind of prompt, then time it."""
    data = [{"prompt": row["messages"], "answer": row["answer"]} for row in recorded(kind)]
    longest = max(len(ids) for row in recorded(kind) for ids in row["completion_ids"])
    settings: dict[str, Any] = {"max_completion_length": longest, **ROWS[kind]}
    trainers = {name: make_trainer(name, model, data, **settings) for name in (TRL, OURS)}
    for trainer in trainers.values():
        trainer.create_optimizer()
    prompts = recorded(kind)[:PROMPTS]
    lengths = [len(ids) for row in prompts for ids in row["completion_ids"]]
    rows = [
        {"prompt": row["messages"], "answer": row["answer"]}
        for row in prompts
        for _ in range(len(row["completion_ids"]))
    ]
    sides = {name: partial(step, trainer, rows, lengths) for name, trainer in trainers.items()}
    for warm_up in sides.values():
        warm_up()
    times = alternate(sides, repeats)
    mean = sum(lengths) / len(lengths)
    drawn = {
        name: trainer._metrics["train"]["completions/mean_length"]
        for name, trainer in trainers.items()
    }
    return comparison(
        kind,
        TITLES[kind],
        times,
        BARS[kind],
        lengths=lengths,
        equal={
            name: all(abs(value - mean) < 1e-3 for value in values[-repeats - 1 :])
            for name, values in drawn.items()
        },
    )


def main(given: Sequence[str] | None = None) -> None:
    """Run the benchmark that the flags describe."""
    arguments = options(__doc__, list(BARS)).parse_args(given)
    quiet()
    prepare(arguments)
    report(
        "step",
        [compare(kind, arguments.model, arguments.repeats) for kind in arguments.rows],
        arguments,
    )


if __name__ == "__main__":
    main()
