"""Grade-school mathematics with GRPO: a question, G answers, a reward for the right number, a LoRA adapter at the end.

    accelerate launch recipes/gsm8k.py                                      # Qwen2.5-0.5B-Instruct, GSM8K, from the Hub
    accelerate launch recipes/gsm8k.py --config recipes/gsm8k_tiny.yaml     # embedded model and problems, offline
    accelerate launch recipes/gsm8k.py --model_name_or_path ./model --dataset_path ./gsm8k   # local folders, offline

For every question the policy writes a group of answers. Each is rewarded, an answer's advantage is how far its reward
lies above the mean of its group in units of the group's deviation, and the policy moves towards the answers above the
mean while a KL term holds it near the frozen base (DeepSeekMath, arXiv 2402.03300, section 4.1). At the end base and
adapter answer the same held-out questions.

Every setting of the YAML file is also a flag: --learning_rate 2e-6, --num_generations 16, --load_in_4bit, ...
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
        recipe = read_recipe(arguments, default=HERE / "gsm8k.yaml")
        from grpo_hf.runs.train import (
            train,
        )  # takes seconds: only after the settings are known to be right

        train(recipe)


if __name__ == "__main__":
    main(sys.argv[1:])
