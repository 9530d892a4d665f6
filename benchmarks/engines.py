"""Compare vLLM beside the training with the rollout of transformers, by groups.

    make vllm-bench
    python -m benchmarks.engines [--rows p128] [--repeats 3] [--threads 1] [--model PATH]

Both sides are trainers of this library with the same adapter, which differs from a fresh one. What
is timed is `_generate_single_turn`, from the token ids of prompts to those of completions, all of
the same length. vLLM's time to take a new adapter is timed apart. It runs in the environment of
`make vllm-test`.
"""

import os
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from grpo_hf.runs.program import quiet

from .common import OURS, options, prepare
from .rollout import rollout
from .sides import make_trainer
from .timing import alternate, timed
from .update import Case, names_of

LENGTH = 64
CASES = [
    Case("p512", "P=512, C=64, G=8, 2 groups", prompt=512, longest=LENGTH, groups=2, equal=True),
    Case("p128", "P=128, C=64, G=8, 2 groups", prompt=128, longest=LENGTH, groups=2, equal=True),
]
VLLM = {
    "use_vllm": True,
    "vllm_max_model_length": 640,
    # Every completion is as long as it may be, as the other side's are.
    "generation_kwargs": {"ignore_eos": True},
}


def by_vllm(trainer: Any, prompts: list[list[int]]) -> list[list[int]]:
    """Return a completion of each prompt, sampled by vLLM."""
    return trainer._generate_single_turn(prompts, None, {}, trainer.num_generations)[0]


def compare(case: Case, sides: dict[str, Any], repeats: int) -> None:
    """Time one case and print its tokens per second."""
    groups = case.make(sides["vLLM"].model.config.get_text_config().vocab_size)
    prompts = []
    for prompt, completions in groups:
        prompts += [prompt] * len(completions)
    actions: dict[str, Callable[[], Any]] = {
        "transformers": partial(rollout, sides["transformers"], prompts, [LENGTH] * len(prompts)),
        "vLLM": partial(by_vllm, sides["vLLM"], prompts),
    }
    for name, action in actions.items():
        # The first one warms the side up.
        if {len(tokens) for tokens in action()} != {LENGTH}:
            raise SystemExit(f"error: {name} does not write {LENGTH} tokens for every prompt.")
    times = alternate(actions, repeats)
    tokens = LENGTH * len(prompts)
    for name, runs in times.items():
        wall = sorted(tokens / run.wall for run in runs)
        cpu = sorted(tokens / run.cpu for run in runs)
        middle = len(runs) // 2
        print(
            f"{case.title:28} {name:12} {wall[middle]:7.1f} tokens/s by wall "
            f"[{wall[0]:.1f}, {wall[-1]:.1f}], {cpu[middle]:7.1f} by CPU time "
            f"[{cpu[0]:.1f}, {cpu[-1]:.1f}]",
            flush=True,
        )


def main(given: Sequence[str] | None = None) -> None:
    """Run the benchmark that the flags describe."""
    arguments = options(__doc__, names_of(CASES), repeats=3).parse_args(given)
    quiet()
    prepare(arguments)
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
    shared = {"model": arguments.model, "max_completion_length": LENGTH}
    sides = {
        "transformers": make_trainer(OURS, **shared),
        "vLLM": make_trainer(OURS, **shared, **VLLM),
    }
    for trainer in sides.values():
        trainer.model.train()
    for case in CASES:
        if case.name in arguments.rows:
            compare(case, sides, arguments.repeats)
    sync = timed(sides["vLLM"].vllm_generation.sync_weights)
    print(f"a new adapter of rank 16 in vLLM: {sync.wall:.2f} s")


if __name__ == "__main__":
    main()
