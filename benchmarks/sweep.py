"""The update against prompt length and group size: `results/sweep.json`, which plot.py draws.

    python -m benchmarks.sweep [--repeats 2] [--threads 1] [--model PATH]

One group per update: P in 32, 128, 512 at G = 8 with C ≤ 128, and G in 2, 4, 8, 16 at P = 256 with C ≤ 64. Shorter
there, because TRL keeps the activations of every padded token: at G = 16 about 17 GB with a 135M model, not 20.
"""

from collections.abc import Sequence

from grpo_hf.runs.program import quiet

from .common import options, prepare, report
from .update import Case, compare, trainers_for

PROMPTS, SIZES = (32, 128, 512), (2, 4, 8, 16)
CASES = [
    *(Case(f"P{prompt}", f"P={prompt}, C≤128, G=8", prompt=prompt) for prompt in PROMPTS),
    *(
        Case(f"G{size}", f"P=256, C≤64, G={size}", prompt=256, longest=64, size=size)
        for size in SIZES
    ),
]


def main(given: Sequence[str] | None = None) -> None:
    """Run the sweep that the flags describe."""
    arguments = options(__doc__, [case.name for case in CASES], repeats=2).parse_args(given)
    quiet()
    prepare(arguments)
    trainers = trainers_for(arguments.model, peer=False)
    rows = []
    for case in (case for case in CASES if case.name in arguments.rows):
        rows.append(
            {**compare(case, trainers, arguments.repeats), "prompt": case.prompt, "size": case.size}
        )
        print(f"{case.title}: {rows[-1]['value']:.2f} times TRL")
    report("sweep", rows, arguments)


if __name__ == "__main__":
    main()
