"""Train on competition mathematics (MATH) with GRPO; the reward compares answers by their meaning.

    # Qwen2.5-1.5B-Instruct on MATH, from the Hub
    python recipes/math_problems.py
    # local rows with the columns problem and answer
    python recipes/math_problems.py --dataset_path ./math
    # local rows whose answer has another name
    python recipes/math_problems.py --dataset_path ./math --columns answer=solution

The algorithm is that of recipes/gsm8k.py, with two differences:

- An answer is an expression, not a number. The reward `math` compares answers by their meaning: 1/2
  and 0.5 are the same answer.
- The model reasons in one pair of tags and answers in another. The reward `think_format` checks the
  tags and has a tenth of the weight of a right answer (DeepSeek-R1, arXiv 2501.12948, table 1).

The file is not called math.py, because Python would import it instead of its own module `math`.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

from grpo_hf.runs.program import train_recipe

HERE = Path(__file__).parent


def main(arguments: Sequence[str]) -> None:
    """Run the recipe that the flags describe."""
    train_recipe(arguments, HERE / "math_problems.yaml")


if __name__ == "__main__":
    main(sys.argv[1:])
