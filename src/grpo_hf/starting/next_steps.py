"""What comes after `grpo-hf init`, as commands that can be copied."""

import shlex
from pathlib import Path


def next_steps(recipe: Path, run: Path, examples: Path | None, *, is_guessed: bool) -> str:
    """Return the commands that come next, each with what it is for.

    Args:
        run: the output folder that the recipe names.
        examples: the reward file that was written, if one was.
        is_guessed: whether the recipe has an instruction that nobody has read yet.

    >>> print(next_steps(Path("my task/recipe.yaml"), Path("runs"), None, is_guessed=False))
    next:
      grpo-hf rewards check 'my task/recipe.yaml'  # what the reward pays for
      grpo-hf plan 'my task/recipe.yaml'           # memory, what fits where, tokens
      grpo-hf baseline 'my task/recipe.yaml'       # what the base earns: can it learn this
      grpo-hf train 'my task/recipe.yaml'          # train, and compare with the base
      grpo-hf report runs                          # did it get better, why, how sure is that
      grpo-hf eval runs --samples 8                # how often is it right: pass@k, maj@k
      grpo-hf chat runs                            # ask base and adapter
      grpo-hf export runs                          # merged weights or GGUF
    """
    # There may be a space in a name.
    file = shlex.quote(str(recipe))
    folder = shlex.quote(str(run))
    steps = []
    if is_guessed:
        steps.append((f"read `instruction` in {recipe}", "a guess: say plainly what is asked"))
    if examples is not None:
        tried = f"python -m doctest {shlex.quote(str(examples))}"
        steps.append((tried, "after a change of the reward"))
    steps.append((f"grpo-hf rewards check {file}", "what the reward pays for"))
    steps.append((f"grpo-hf plan {file}", "memory, what fits where, tokens"))
    steps.append((f"grpo-hf baseline {file}", "what the base earns: can it learn this"))
    steps.append((f"grpo-hf train {file}", "train, and compare with the base"))
    steps.append((f"grpo-hf report {folder}", "did it get better, why, how sure is that"))
    steps.append((f"grpo-hf eval {folder} --samples 8", "how often is it right: pass@k, maj@k"))
    steps.append((f"grpo-hf chat {folder}", "ask base and adapter"))
    steps.append((f"grpo-hf export {folder}", "merged weights or GGUF"))
    width = max(len(command) for command, _ in steps)
    lines = [f"  {command:{width}}  # {what}" for command, what in steps]
    return "\n".join(["next:", *lines])
