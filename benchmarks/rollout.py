"""The rollout: sampling whole groups, grpo-hf against TRL.

    python -m benchmarks.rollout [--rows p512] [--repeats 5] [--threads 1] [--model PATH]

What is timed is the trainer's `_generate_single_turn`: token ids of prompts in, token ids of completions out. Lengths
are forced on both sides in the same way (`batches.forced_lengths`), so both sample equally many tokens; the tokens
themselves differ by chance. That is checked, as is that greedy decoding gives both sides the same tokens: an
exit code of 1 says that it did not.

Greedy decoding is compared over the first tokens only, and at least 9 of 10 have to be equal: merged and separate
adapters round differently, and where two tokens are nearly equally likely a row may go on differently.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

from grpo_hf.runs.program import quiet

from .batches import forced_lengths
from .common import OURS, TRL, Row, alternate, comparison, options, prepare, report
from .sides import make_trainer
from .update import Case

CASES = [
    Case("p512", "P=512, C=64, G=8, 2 groups", 2.5, prompt=512, longest=64, groups=2, equal=True),
    Case("p128", "P=128, C≤128, G=8, 2 groups", groups=2),
]
GREEDY = 8  # tokens


def rollout(trainer: Any, prompts: list[list[int]], lengths: Sequence[int]) -> list[list[int]]:
    """Token ids of one completion per prompt, of these lengths."""
    trainer.model.train()
    with forced_lengths(trainer, lengths):
        completions, _ = trainer._generate_single_turn(prompts, None, {}, trainer.num_generations)
    return completions


def greedy_agreement(trainers: dict[str, Any], prompts: list[list[int]]) -> float:
    """Share of the first tokens that greedy decoding chooses alike on both sides."""
    chosen = {}
    for name, trainer in trainers.items():
        trainer.generation_config.do_sample = trainer.generation_kwargs["do_sample"] = False
        chosen[name] = rollout(
            trainer, prompts, [GREEDY + 1] * len(prompts)
        )  # the last one is forced
        trainer.generation_config.do_sample = trainer.generation_kwargs["do_sample"] = True
    same = [
        a == b
        for trl, ours in zip(*chosen.values(), strict=True)
        for a, b in zip(trl[:-1], ours[:-1], strict=True)
    ]
    return sum(same) / len(same)


def compare(case: Case, trainers: dict[str, Any], repeats: int) -> Row:
    """Check one case, then time it."""
    groups = case.make(trainers[TRL].model.config.get_text_config().vocab_size)
    prompts = [prompt for prompt, completions in groups for _ in completions]
    lengths = [len(ids) for _, completions in groups for ids in completions]
    exact = {
        name: list(map(len, rollout(trainer, prompts, lengths))) == lengths
        for name, trainer in trainers.items()
    }
    agreement = greedy_agreement(trainers, prompts)
    sides = {
        name: partial(rollout, trainer, prompts, lengths) for name, trainer in trainers.items()
    }
    return comparison(
        case.name,
        case.title,
        alternate(sides, repeats),
        case.bar,
        lengths=lengths,
        checks={"greedy agreement": agreement},
        equal=exact | {"greedy": agreement >= 0.9},
    )


def main(given: Sequence[str] | None = None) -> None:
    """Run the benchmark that the flags describe."""
    arguments = options(__doc__, [case.name for case in CASES]).parse_args(given)
    quiet()
    prepare(arguments)
    longest = max(case.longest for case in CASES)
    trainers = {
        name: make_trainer(name, arguments.model, max_completion_length=longest)
        for name in (TRL, OURS)
    }
    rows = [
        compare(case, trainers, arguments.repeats) for case in CASES if case.name in arguments.rows
    ]
    for row in rows:
        print(
            f"{row['name']}: greedy decoding agrees on {row['checks']['greedy agreement']:.1%} of the first tokens"
        )
    report("rollout", rows, arguments)


if __name__ == "__main__":
    main()
