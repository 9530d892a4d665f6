"""Competition mathematics with GRPO: MATH's problems, a reward for an answer that means the same as the gold one.

    accelerate launch recipes/math_problems.py                           # Qwen2.5-1.5B-Instruct on MATH, from the Hub
    accelerate launch recipes/math_problems.py --dataset_path ./math     # local rows with problem and answer
    accelerate launch recipes/math_problems.py --dataset_path ./math --columns answer=solution   # of another name

As in recipes/gsm8k.py, with two differences. An answer is an expression, not a number, so it is compared by meaning
(`math`: 1/2 and 0.5 are the same answer). And the model thinks in one pair of tags and answers in another, which earns
a tenth of a right answer (`think_format`; DeepSeek-R1, arXiv 2501.12948, table 1).

The file is not called math.py because Python would then import it in the place of its own `math`.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

from grpo_hf.runs.program import exit_on_error, quiet

HERE = Path(__file__).parent


def main(arguments: Sequence[str]) -> None:
    """Run the recipe that the flags describe."""
    quiet()
    from grpo_hf.runs.recipe import read_recipe

    with exit_on_error():
        recipe = read_recipe(arguments, default=HERE / "math_problems.yaml")
        from grpo_hf.runs.train import train

        train(recipe)


if __name__ == "__main__":
    main(sys.argv[1:])
