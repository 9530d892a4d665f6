"""Time the update for several prompt lengths and group sizes; plot.py draws the results.

    python -m benchmarks.sweep [--repeats 2] [--threads 1] [--model PATH]

Every update has one group: P = 32, 128, 512 with G = 8 and C ≤ 128, and G = 2, 4, 8, 16 with
P = 256 and C ≤ 64. The results go to `results/sweep.json`.
"""

from collections.abc import Sequence

from grpo_hf.runs.program import quiet

from .common import options, prepare, report
from .update import Case, compare, names_of, trainers_for

PROMPT_LENGTHS = (32, 128, 512)
GROUP_SIZES = (2, 4, 8, 16)


def make_cases() -> list[Case]:
    """Return the cases of the sweep."""
    cases = []
    for prompt in PROMPT_LENGTHS:
        cases.append(Case(f"P{prompt}", f"P={prompt}, C≤128, G=8", prompt=prompt))
    for size in GROUP_SIZES:
        # Shorter sequences than above, because TRL keeps the activations of every padded token: at
        # G = 16 it needs about 17 GB with a model of 135M weights, instead of 20.
        title = f"P=256, C≤64, G={size}"
        cases.append(Case(f"G{size}", title, prompt=256, longest=64, size=size))
    return cases


CASES = make_cases()


def main(given: Sequence[str] | None = None) -> None:
    """Run the sweep that the flags describe."""
    arguments = options(__doc__, names_of(CASES), repeats=2).parse_args(given)
    quiet()
    prepare(arguments)
    # The picture has no line for prefix-grouper.
    trainers = trainers_for(arguments.model, peer=False)
    rows = []
    for case in CASES:
        if case.name not in arguments.rows:
            continue
        row = compare(case, trainers, arguments.repeats)
        # The x axes of the picture.
        rows.append({**row, "prompt": case.prompt, "size": case.size})
        print(f"{case.title}: {row['value']:.2f} times TRL")
    report("sweep", rows, arguments)


if __name__ == "__main__":
    main()
