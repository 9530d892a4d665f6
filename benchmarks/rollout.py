"""Compare the rollout, which samples whole groups, of grpo-hf with TRL's.

    python -m benchmarks.rollout [--rows p512] [--repeats 5] [--threads 1] [--model PATH]

The benchmark times the trainer's `_generate_single_turn`, from the token ids of prompts to the
token ids of completions. The lengths are forced on both sides in the same way
(`batches.forced_lengths`), so both sides sample the same number of tokens. The tokens themselves
differ by chance.

Two things are checked, and the exit code is 1 if one of them fails: the lengths are the forced
ones, and both sides decode the same tokens greedily. The greedy check compares the first tokens
only, and 9 of 10 have to be equal. Merged and separate adapters round differently, so where two
tokens are almost equally likely, the two sides may continue differently.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

from grpo_hf.runs.program import quiet

from .batches import forced_lengths
from .common import OURS, TRL, Row, add_dtype, options, prepare, report
from .sides import make_trainer
from .timing import alternate, comparison
from .update import Case, names_of

CASES = [
    Case("p512", "P=512, C=64, G=8, 2 groups", 2.5, prompt=512, longest=64, groups=2, equal=True),
    Case("p128", "P=128, C≤128, G=8, 2 groups", groups=2),
]
# Tokens of each completion that greedy decoding compares, and the share that has to be equal.
GREEDY = 8
GREEDY_BAR = 0.9


def rollout(trainer: Any, prompts: list[list[int]], lengths: Sequence[int]) -> list[list[int]]:
    """Return the token ids of one completion per prompt, with forced lengths."""
    # Training calls `_generate_single_turn` in this mode.
    trainer.model.train()
    with forced_lengths(trainer, lengths):
        completions, _ = trainer._generate_single_turn(prompts, None, {}, trainer.num_generations)
    return completions


def greedy_agreement(trainers: dict[str, Any], prompts: list[list[int]]) -> float:
    """Return the share of the first tokens that both sides choose alike in greedy decoding."""
    chosen = []
    for trainer in trainers.values():
        _set_do_sample(trainer, False)
        # One token more, because the last token is forced.
        chosen.append(rollout(trainer, prompts, [GREEDY + 1] * len(prompts)))
        _set_do_sample(trainer, True)
    same = 0
    total = 0
    for trl, ours in zip(*chosen, strict=True):
        for trl_token, our_token in zip(trl[:-1], ours[:-1], strict=True):
            same += trl_token == our_token
            total += 1
    return same / total


def _set_do_sample(trainer: Any, do_sample: bool) -> None:
    # The two sides read the setting from different places.
    trainer.generation_config.do_sample = do_sample
    trainer.generation_kwargs["do_sample"] = do_sample


def has_lengths(trainer: Any, prompts: list[list[int]], lengths: list[int]) -> bool:
    """Run a rollout; return whether its completions have the forced lengths."""
    return list(map(len, rollout(trainer, prompts, lengths))) == lengths


def compare(case: Case, trainers: dict[str, Any], repeats: int) -> Row:
    """Check one case, then time it."""
    groups = case.make(trainers[TRL].model.config.get_text_config().vocab_size)
    prompts = []
    lengths = []
    for prompt, completions in groups:
        # `_generate_single_turn` takes one prompt per completion.
        prompts += [prompt] * len(completions)
        lengths += list(map(len, completions))
    equal = {}
    sides = {}
    for name, trainer in trainers.items():
        # This first rollout also warms the side up.
        equal[name] = has_lengths(trainer, prompts, lengths)
        sides[name] = partial(rollout, trainer, prompts, lengths)
    agreement = greedy_agreement(trainers, prompts)
    equal["greedy"] = agreement >= GREEDY_BAR
    return comparison(
        case.name,
        case.title,
        alternate(sides, repeats),
        case.bar,
        lengths=lengths,
        checks={"greedy agreement": agreement},
        equal=equal,
    )


def main(given: Sequence[str] | None = None) -> None:
    """Run the benchmark that the flags describe."""
    parser = options(__doc__, names_of(CASES))
    add_dtype(parser)
    arguments = parser.parse_args(given)
    quiet()
    prepare(arguments)
    longest = max(case.longest for case in CASES)
    # prefix-grouper has no rollout.
    trainers = {}
    for name in (TRL, OURS):
        trainers[name] = make_trainer(name, arguments.model, max_completion_length=longest)
    rows = []
    for case in CASES:
        if case.name in arguments.rows:
            rows.append(compare(case, trainers, arguments.repeats))
    for row in rows:
        agreement = row["checks"]["greedy agreement"]
        print(f"{row['name']}: greedy decoding agrees on {agreement:.1%} of the first tokens")
    report("rollout", rows, arguments)


if __name__ == "__main__":
    main()
