"""Compare a whole step: rollout, reference pass, rewards, loss, backward, optimizer.

    python -m benchmarks.step [--rows 4-shot] [--repeats 5] [--threads 1] [--model PATH]

The batch is two GSM8K prompts with G = 8 from data/completions.json. Each side runs its own
`training_step`, with the two rewards of the GSM8K recipe, then clips the gradients and makes an
optimizer step.

The cost of a step is roughly proportional to the length of its completions, which differs by
chance. So both sides sample completions of the recorded lengths for these prompts: a logits
processor ends each row at its length (`batches.forced_lengths`), and all other tokens are sampled
freely. The exit code is 1 if a side has other lengths. update.py checks that both sides compute the
same numbers from the same completions.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

from grpo_hf.runs.program import quiet

from .batches import forced_lengths, recorded
from .common import OURS, TRL, Row, add_dtype, options, prepare, report
from .sides import make_trainer
from .timing import alternate, comparison

# Prompts of a step.
PROMPTS = 2

# How far the mean length of completions may be from the forced one.
LENGTH_TOLERANCE = 1e-3

# Zero-shot has the batch size of this model's recipe. In 4-shot TRL would need 20 GB for 8 rows of
# 785 tokens. With 4 rows it needs 10 GB, although this splits each of our groups in two.
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
    """Make one optimizer step on a batch of prompts."""
    with forced_lengths(trainer, lengths):
        # The first micro-batch samples for all of them.
        for _ in range(trainer.args.gradient_accumulation_steps):
            trainer.training_step(trainer.model, rows, None)
    trainer.accelerator.clip_grad_norm_(trainer.model.parameters(), trainer.args.max_grad_norm)
    trainer.optimizer.step()
    trainer.model.zero_grad()


def compare(kind: str, model: str, repeats: int) -> Row:
    """Make both trainers, warm up on one kind of prompt, then time it."""
    data = recorded(kind)
    trainers = make_trainers(kind, model, data)
    lengths = []
    rows = []
    for recorded_prompt in data[:PROMPTS]:
        for completion in recorded_prompt["completion_ids"]:
            lengths.append(len(completion))
            # A trainer's batch has one row per completion.
            rows.append(dataset_row(recorded_prompt))
    sides = {}
    for name, trainer in trainers.items():
        sides[name] = partial(step, trainer, rows, lengths)
    for warm_up in sides.values():
        warm_up()
    times = alternate(sides, repeats)
    equal = {}
    for name, trainer in trainers.items():
        sampled = trainer._metrics["train"]["completions/mean_length"]
        # The last values are those of the warm-up and of all repeats.
        equal[name] = are_near(sampled[-repeats - 1 :], sum(lengths) / len(lengths))
    return comparison(kind, TITLES[kind], times, BARS[kind], lengths=lengths, equal=equal)


def make_trainers(kind: str, model: str, data: list[dict[str, Any]]) -> dict[str, Any]:
    """Return a trainer with an optimizer for each side."""
    longest = 0
    for recorded_prompt in data:
        longest = max(longest, *map(len, recorded_prompt["completion_ids"]))
    settings: dict[str, Any] = {"max_completion_length": longest, **ROWS[kind]}
    rows = list(map(dataset_row, data))
    trainers = {}
    for name in (TRL, OURS):
        trainers[name] = make_trainer(name, model, rows, **settings)
    for trainer in trainers.values():
        # `train` makes it, and is never called here.
        trainer.create_optimizer()
    return trainers


def dataset_row(recorded_prompt: dict[str, Any]) -> dict[str, Any]:
    """Return the columns that trainer and rewards need."""
    return {"prompt": recorded_prompt["messages"], "answer": recorded_prompt["answer"]}


def are_near(values: Sequence[float], expected: float) -> bool:
    """Return whether all values are within `LENGTH_TOLERANCE` of the expected one."""
    return all(abs(value - expected) < LENGTH_TOLERANCE for value in values)


def main(given: Sequence[str] | None = None) -> None:
    """Run the benchmark that the flags describe."""
    parser = options(__doc__, list(BARS))
    add_dtype(parser)
    arguments = parser.parse_args(given)
    quiet()
    prepare(arguments)
    rows = []
    for kind in arguments.rows:
        rows.append(compare(kind, arguments.model, arguments.repeats))
    report("step", rows, arguments)


if __name__ == "__main__":
    main()
