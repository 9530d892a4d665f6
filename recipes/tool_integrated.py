"""Train a model to reason with a program: tool-integrated reasoning on GSM8K with GRPO.

    # Qwen3-0.6B on GSM8K, from the Hub
    python recipes/tool_integrated.py
    # the same problems without the tool, for the other column of the paper's tables
    python recipes/tool_integrated.py --tools '' --output_dir runs/chain_of_thought
    # both columns of one run: with the tool as it was trained, and without
    grpo-hf eval runs/tool_integrated
    grpo-hf eval runs/tool_integrated --tools ''

DeepSeekMath (arXiv 2402.03300, section 2, tables 2 and 5) judges a model twice: by its chain of
thought, and where it may write programs. Here the model calls the tool `python`, the program runs
in the sandbox, and what it prints comes back as a turn, after which the model goes on. The tokens
of that turn are read and not trained on, as the model did not write them. The comparison at the end
lets base and adapter call the tool as well.

Any function with a docstring and type hints can be a tool: `--tools ./my_tools.py:search`. The
model needs a chat template with tools, as Qwen3 and Llama 3.1 have.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

from grpo_hf.runs.program import train_recipe

HERE = Path(__file__).parent


def main(arguments: Sequence[str]) -> None:
    """Run the recipe that the flags describe."""
    train_recipe(arguments, HERE / "tool_integrated.yaml")


if __name__ == "__main__":
    main(sys.argv[1:])
