"""How many rows, prompts and tokens a run works on at a time, and a picture of it in text."""

from dataclasses import dataclass
from typing import Any

from ..config import option

# Marks in the picture; more of them than this are written as a number.
_MARKS = 16


@dataclass(frozen=True)
class Geometry:
    """The batches of one GPU.

    Args:
        gpus: how many train side by side.
        group: completions of a prompt, G.
        batch: completions of a micro-batch, B.
        parts: micro-batches of a rollout.
        accumulation: micro-batches of an optimizer step.
        iterations: updates on each rollout, μ.
        prompt: tokens of a prompt, P.
        completion: tokens of a completion, C.
        packed: whether an update reads each prompt once.
        forward_tokens: the most tokens of a packed forward without gradients.
    """

    gpus: int
    group: int
    batch: int
    parts: int
    accumulation: int
    iterations: int
    prompt: int
    completion: int
    packed: bool
    forward_tokens: int = 8192

    @classmethod
    def of(cls, args: Any, *, gpus: int, prompt: int) -> "Geometry":
        """Read it from the settings of a run, with completions as long as it allows.

        Args:
            args: the settings, read for so many processes.
            prompt: tokens of a prompt.
        """
        return cls(
            gpus=gpus,
            group=args.num_generations,
            batch=args.per_device_train_batch_size,
            parts=args.steps_per_generation,
            accumulation=args.gradient_accumulation_steps,
            iterations=args.num_iterations,
            prompt=prompt,
            completion=args.max_completion_length or prompt,
            packed=option(args, "packed_update"),
            forward_tokens=option(args, "max_tokens_per_forward"),
        )

    @property
    def rollout_rows(self) -> int:
        """Completions that a GPU samples at a time."""
        return self.batch * self.parts

    @property
    def rollout_prompts(self) -> int:
        """Distinct prompts of them."""
        return self.prompts_of(self.rollout_rows)

    def prompts_of(self, rows: int) -> int:
        """Return the prompts of some rows whose groups lie together."""
        return -(-rows // self.group)

    def row_tokens(self, rows: int) -> int:
        """Return the tokens of one forward of an update.

        A packed row has each prompt but for its last token once; TRL's block has it in every row.
        """
        if not self.packed:
            return rows * (self.prompt + self.completion)
        return self.prompts_of(rows) * (self.prompt - 1) + rows * self.completion

    @property
    def scoring_rows(self) -> int:
        """Rows of a forward without gradients, for the old or the reference policy."""
        if not self.packed:
            return self.batch
        rows = 1
        while rows < self.rollout_rows and self.row_tokens(rows + 1) <= self.forward_tokens:
            rows += 1
        return rows


def picture(geometry: Geometry, device: str = "GPU") -> list[str]:
    """Draw the batches of a run: a rollout, a micro-batch of it, an optimizer step.

    Args:
        device: what trains, for the text.
    """
    g = geometry
    rows = g.rollout_rows
    prompts = g.rollout_prompts
    packed = g.row_tokens(g.batch)
    block = g.batch * (g.prompt + g.completion)
    lines = [
        f"rollout of one {device}: {prompts} prompts x {g.group} completions = {rows} rows",
        "",
        f"    prompt 1     [{_bar('p', 4)}] -> {_bar('c', g.group)}",
    ]
    if prompts > 1:
        if prompts > 2:
            lines.append("    ...")
        lines.append(f"    {f'prompt {prompts}':12} [{_bar('p', 4)}] -> {_bar('c', g.group)}")
    lines += [
        "",
        f"dealt into {_number(g.parts, 'micro-batch')} of {g.batch} rows, groups together:",
        "",
    ]
    own = g.prompts_of(g.batch)
    of_each = -(-g.batch // own)
    if g.packed:
        groups = [f"[pppp]{_bar('c', of_each)}"] * min(own, 3)
        more = " ..." if own > 3 else ""
        lines.append(f"    {' '.join(groups)}{more}")
        lines.append(
            # The last one predicts a completion's first token, so it stands before each.
            f"    {own} x {g.prompt - 1} prompt tokens once + {g.batch} x {g.completion} = "
            f"{packed:,} tokens; TRL's block has {block:,}"
        )
    else:
        lines.append(f"    {' '.join(['[pppp]c'] * min(g.batch, 6))}{' ...' * (g.batch > 6)}")
        lines.append(f"    {g.batch} x ({g.prompt} + {g.completion}) = {block:,} tokens")
    together = g.gpus * g.batch * g.accumulation
    lines += [
        "",
        f"optimizer step: {g.gpus} {device}{'s' * (g.gpus > 1)} x {g.batch} rows x "
        f"{_number(g.accumulation, 'micro-batch')} = {together} completions of "
        f"{_number(g.prompts_of(together), 'prompt')}",
    ]
    if g.iterations > 1:
        lines.append(f"each rollout is used {g.iterations} times (num_iterations)")
    return lines


def _number(count: int, noun: str) -> str:
    """Return a number with its noun, as `2 prompts`."""
    if count == 1:
        return f"1 {noun}"
    return f"{count} {noun}{'es' if noun.endswith('ch') else 's'}"


def _bar(mark: str, count: int) -> str:
    """Return a mark so many times, or as a number where that is too long."""
    if count <= _MARKS:
        return mark * count
    return f"{mark * 3}...{mark} ({count})"
