"""What happens to a step whose numbers are not finite: the run stops, or leaves the step out."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from accelerate.utils import DistributedType
from torch import Tensor

from ..config import option
from ..errors import ConfigError, NotFiniteError
from ..process_log import get_logger
from ..run_context import PolicyState, RunContext
from .finite import Verdict
from .kept_batch import Fault, faults_of, keep_batch, row_text

# It speaks in the main process alone.
logger = get_logger(__name__)

# So many steps in a row without an update are no accident of one batch.
MOST_IN_A_ROW = 5

_ADVICE = (
    "Lower learning_rate, keep max_grad_norm above 0, look at the size of the rewards, or train in "
    "bf16 or float32 in the place of float16"
)


def check_skipping(args: Any, accelerator: Any) -> None:
    """Check that steps can be left out.

    Raises:
        ConfigError: DeepSpeed moves the weights before the gradient can be read.
    """
    skips = option(args, "non_finite") == "skip"
    if skips and accelerator.distributed_type == DistributedType.DEEPSPEED:
        raise ConfigError(
            "non_finite is 'skip', and DeepSpeed moves the weights before the gradient can be "
            "read. Set --non_finite stop, or train on plain processes (DDP) or with FSDP."
        )


def leave_out_or_stop(
    verdict: Verdict, policy: PolicyState, tokenizer: Any, args: Any, run: RunContext
) -> None:
    """Keep the batch of a step that must not be made, and say so.

    Args:
        verdict: of the step, the same on all processes.
        policy: as it is before the step.
        args: of the run: `output_dir` and `non_finite`.

    Raises:
        NotFiniteError: on all processes, unless the step is left out.
    """
    model = None if policy.sharded_weights else policy.model
    kept = keep_batch(verdict, model, Path(args.output_dir), run)
    # The process that knows a row speaks for those that only see the sum of all gradients.
    found = run.gather_list([_where(verdict, policy, tokenizer, run)])
    what = next(filter(None, found), _without_rows(verdict))
    if option(args, "non_finite") == "skip" and verdict.in_a_row < MOST_IN_A_ROW:
        logger.warning(f"Step {verdict.step} is left out (non_finite: skip): {what}. {kept}")
        return
    advice = f"{_ADVICE}; --non_finite skip leaves such a step out."
    if verdict.in_a_row > 1:
        advice = f"{verdict.in_a_row} steps in a row were like this. {_ADVICE}."
    raise NotFiniteError(
        f"step {verdict.step} is not made: {what}. The weights are those of step "
        f"{verdict.step - 1}, and no checkpoint was touched. {kept} {advice}"
    )


def _without_rows(verdict: Verdict) -> str:
    """Return what is known of a step in which no row is at fault by itself."""
    if not verdict.gradient:
        return "a loss or log-probability is NaN or infinite"
    return (
        "the norm of the gradient is NaN or infinite, although every loss is finite: its backward "
        "pass overflows"
    )


def _where(verdict: Verdict, policy: PolicyState, tokenizer: Any, run: RunContext) -> str | None:
    """Return the first fault that this process can see, with a row of it, or None."""
    try:
        faults = faults_of(verdict, _log_probs(verdict, policy))
        return _words(faults[0], verdict, tokenizer, run) if faults else None
    # The run has to end with what is known, whatever a model does here that is not known.
    except Exception as error:
        return f"{_without_rows(verdict)}; its rows could not be read ({error})"


def _words(fault: Fault, verdict: Verdict, tokenizer: Any, run: RunContext) -> str:
    """Return a fault in words."""
    micro_batch, loss = verdict.micro_batches[fault.micro_batch]
    where = f"micro-batch {fault.micro_batch + 1} of {len(verdict.micro_batches)}"
    if run.world > 1:
        where += f" on process {run.rank}"
    rows = f"{len(fault.rows)} of {len(micro_batch['prompt_ids'])} rows"
    first = fault.rows[0]
    return (
        f"NaN or infinity in {fault.tensor}, in {rows} of {where}, whose loss is {loss.item():g}; "
        f"row {first}: {row_text(micro_batch, first, tokenizer)}"
    )


def _log_probs(verdict: Verdict, policy: PolicyState) -> Callable[..., Tensor] | None:
    """Return what scores rows in this process alone; None for shards of weights, and images."""
    has_images = any("pixel_values" in batch for batch, _ in verdict.micro_batches)
    if policy.sharded_weights or has_images:
        return None
    return lambda *block: policy.log_probs(policy.model, *block)
