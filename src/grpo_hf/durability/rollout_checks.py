"""Checks of a rollout: logits that can be sampled, and what a rollout function returns."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from ..errors import NotFiniteError, RolloutError
from ..run_context import RunContext
from .finite import first_broken, largest_weight

# What torch says where it has to draw from probabilities that are NaN.
_TORCH_SAYS = "probability tensor contains either"


@contextmanager
def logits_explained(model: Any, learning_rate: float, step: int) -> Iterator[None]:
    """Say in a block that samples where logits that are not finite come from.

    Args:
        model: the policy, unwrapped.
        step: how many optimizer steps were made.

    Raises:
        NotFiniteError: in the place of an error of torch that names no step.
    """
    try:
        yield
    except (NotFiniteError, RuntimeError) as error:
        if not isinstance(error, NotFiniteError) and _TORCH_SAYS not in str(error):
            raise
        broken = first_broken(model, trains=True)
        if broken is None:
            reason = f"The largest weight that trains is {largest_weight(model) or 0:.3g}"
        else:
            reason = f"Since step {step} or before, the weight {broken} is NaN or infinite"
        raise NotFiniteError(
            f"step {step + 1} is not made: the policy's logits are not finite, so nothing can be "
            f"sampled. {reason}, and learning_rate is {learning_rate:g}. Lower learning_rate, and "
            "go on from a checkpoint whose weights are smaller; float16 overflows where bf16 does "
            "not."
        ) from error


def checked_rollout(function: Callable[..., Any], vocabulary: int, run: RunContext) -> Any:
    """Return a rollout function whose completions are checked.

    Args:
        function: the user's.
        vocabulary: how many tokens the model knows.
        run: this process's view of the run.

    Returns:
        A function that raises RolloutError, on all processes, where a completion has no tokens or
        a token id is none of the model's.
    """

    def rollout(prompts: list[Any], trainer: Any) -> Any:
        output = function(prompts, trainer)
        mistake = None
        # TRL says itself which keys are missing.
        for name in ("prompt_ids", "completion_ids"):
            if name in output and mistake is None:
                mistake = _mistake(name, output[name], prompts, vocabulary)
        # All processes leave together: one that waits for the others would wait for ever.
        for rank, found in enumerate(run.gather_list([mistake])):
            if found is not None:
                where = f" on process {rank}" if run.world > 1 else ""
                raise RolloutError(f"the rollout function returned{where} {found}")
        return output

    return rollout


def _mistake(
    name: str, rows: Sequence[Sequence[int]], prompts: Sequence[Any], vocabulary: int
) -> str | None:
    """Return what is wrong with lists of token ids, as the end of a sentence, or None."""
    for row, ids in enumerate(rows):
        # A rollout function may return more rows than there are prompts.
        about = f"{name}[{row}]"
        if row < len(prompts):
            about += f" (prompt {str(prompts[row])[:80]!r})"
        if len(ids) == 0:
            return (
                f"no tokens in {about}. Return one token at least, such as the end-of-sequence "
                "token of an answer that is empty."
            )
        lowest, highest = int(min(ids)), int(max(ids))
        if lowest < 0 or highest >= vocabulary:
            wrong = lowest if lowest < 0 else highest
            return (
                f"the token id {wrong} in {about}, and the model knows the ids 0 to "
                f"{vocabulary - 1}. Use the tokenizer of the model that is trained, and leave "
                "padding out."
            )
    return None
