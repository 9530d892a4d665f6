"""Train on grade-school mathematics with GRPO, from a question to a LoRA adapter.

    # Qwen2.5-0.5B-Instruct and GSM8K from the Hub
    python recipes/gsm8k.py
    # embedded model and problems, offline
    python recipes/gsm8k.py --config recipes/gsm8k_tiny.yaml
    # local folders, offline
    python recipes/gsm8k.py --model_name_or_path ./model --dataset_path ./gsm8k

The policy samples a group of completions for every question. A reward says whether the final number
of a completion is right. The advantage of a completion is its reward minus the group's mean, in
units of the group's standard deviation. The policy moves towards completions with a positive
advantage, while a KL term keeps it near the frozen base. At the end, base and adapter answer
the same held-out questions.

Every setting of the YAML file is also a flag: --learning_rate 2e-6, --num_generations 16,
--load_in_4bit, ...

Source: DeepSeekMath (arXiv 2402.03300), section 4.1.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

from grpo_hf.runs.program import train_recipe

HERE = Path(__file__).parent


def main(arguments: Sequence[str]) -> None:
    """Run the recipe that the flags describe."""
    train_recipe(arguments, HERE / "gsm8k.yaml")


if __name__ == "__main__":
    main(sys.argv[1:])
