"""A plan as text: batches, memory, what fits, time and cost."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from textwrap import wrap

import psutil

from .cost import Cost
from .fitting import DEVICES, Fit, fit_into
from .geometry import picture
from .memory import peak_of, phases_of
from .run_facts import RunFacts
from .terms import GIB, MIB, Phase, groups_of, letters_of

_WIDTH = 16
# Terms below this share of a phase are one line together.
_SMALL = 0.01


@dataclass(frozen=True)
class Plan:
    """What `grpo-hf plan` shows.

    Args:
        title: the recipe and the model.
        on_gpu: the same run on a GPU, for what fits there.
        rate_hint: how a rate is measured, where none is known.
        notes: what was assumed.
    """

    title: str
    run: RunFacts
    on_gpu: RunFacts
    cost: Cost
    rate_hint: str
    notes: Sequence[str] = ()


def page(plan: Plan) -> str:
    """Return the plan as text."""
    shape = plan.run.shape
    lines = [
        plan.title,
        f"{shape.parameters:,} parameters in {shape.depth} layers of width {shape.width}; "
        f"{shape.trained:,} train{' in an adapter' if plan.run.uses_adapter else ''}",
        "",
        "BATCHES",
        "",
    ]
    lines += [f"  {line}".rstrip() for line in picture(plan.run.geometry, _device(plan.run))]
    phases = phases_of(plan.run)
    lines += ["", f"MEMORY OF ONE {_device(plan.run)}", "", *_table(phases)]
    peak = max(phases, key=lambda phase: phase.size)
    lines += ["", f"  The peak is {size_text(peak.size)}, in the phase {peak.name}:", ""]
    lines += _details(peak)
    lines += ["", "WHAT FITS", ""]
    if plan.run.device == "cpu":
        free = psutil.virtual_memory().available
        lines.append(
            f"  this machine ({size_text(free)} free)  {_fit_text(fit_into(plan.run, free))}"
        )
        lines += ["", "  and a GPU of"]
    lines += _devices(plan.on_gpu)
    lines += ["", "TOKENS, TIME AND COST", ""]
    lines += [f"  {line}" for line in cost_lines(plan.cost, plan.rate_hint)]
    if plan.notes:
        lines.append("")
        lines += [f"note: {note}" for note in plan.notes]
    return "\n".join(lines) + "\n"


def size_text(size: float) -> str:
    """Return a number of bytes in the unit that fits.

    >>> size_text(3 * 2**30), size_text(2**20 * 20.4)
    ('3.0 GiB', '20 MiB')
    """
    if size >= GIB:
        return f"{size / GIB:.1f} GiB"
    return f"{size / MIB:.0f} MiB"


def _table(phases: Sequence[Phase]) -> list[str]:
    """Return a row for each group of terms, and a column for each phase."""
    lines = ["  " + " " * _WIDTH + "".join(f"{phase.name:>11}" for phase in phases)]
    for group in groups_of(phases):
        cells = []
        for phase in phases:
            size = phase.of_group(group)
            cells.append(f"{size_text(size) if size else '-':>11}")
        lines.append(f"  {group:{_WIDTH}}" + "".join(cells))
    lines.append(f"  {'all':{_WIDTH}}" + "".join(f"{size_text(p.size):>11}" for p in phases))
    return lines


def _details(phase: Phase) -> list[str]:
    """Return the terms of a phase, the largest first, with their tensors."""
    lines = []
    small = 0
    for term in sorted(phase.terms, key=lambda term: -term.size):
        if term.size < phase.size * _SMALL:
            small += term.size
            continue
        lines.append(f"  {size_text(term.size):>11}  {term.group}: {term.source}")
    if small:
        lines.append(f"  {size_text(small):>11}  all others")
    letters = letters_of(lines)
    if letters:
        lines += ["", *wrap(letters, width=90, initial_indent="  ", subsequent_indent="  ")]
    return lines


def _devices(run: RunFacts) -> list[str]:
    """Return what fits into which GPU; sizes of which the same holds are one line."""
    texts: dict[str, list[int]] = {}
    for gigabytes in DEVICES:
        texts.setdefault(_fit_text(fit_into(run, gigabytes * GIB)), []).append(gigabytes)
    lines = []
    for text, sizes in texts.items():
        # What fits goes on to fit, so the sizes of a text are neighbours.
        several = f" to {sizes[-1]}" if len(sizes) > 1 else ""
        lines.append(f"  {f'{sizes[0]}{several} GB':>12}  {text}")
    return lines


def _fit_text(fit: Fit) -> str:
    taken = f"{size_text(fit.needed)} in the phase {fit.phase}"
    if fit.fits:
        return f"fits: {taken}"
    if fit.change:
        return f"with {fit.change} (as it is: {taken})"
    return f"no one or two changes make it fit ({taken})"


def _device(run: RunFacts) -> str:
    return "CPU" if run.device == "cpu" else "GPU"


def cost_lines(cost: Cost, rate_hint: str) -> list[str]:
    """Return tokens, time and cost of a step and of the run.

    Args:
        rate_hint: what is said where the time is not known.
    """
    most = "at most " if cost.at_most else ""
    lines = [
        f"a step writes {most}{cost.written:,} tokens, and counts {cost.counted:,} with their "
        "prompts"
    ]
    if cost.steps is None:
        lines.append("the settings do not say how many steps there are (max_steps)")
    else:
        lines.append(f"{cost.steps:,} steps write {most}{cost.written * cost.steps:,} tokens")
    if cost.seconds is None:
        return lines + rate_hint.split("\n")
    text = f"a step takes {most}{duration(cost.seconds)}"
    if cost.steps is not None:
        text += f", all steps {duration(cost.seconds * cost.steps)} (without a comparison after)"
    lines.append(text)
    if cost.dollars is not None:
        text = f"a step costs {most}${cost.dollars:,.4f}"
        if cost.steps is not None:
            text += f", the run ${cost.dollars * cost.steps:,.2f}"
        lines.append(text)
    return lines


def duration(seconds: float) -> str:
    """Return a time in the unit that fits.

    >>> duration(5.25), duration(90), duration(7380)
    ('5.2 s', '1:30 min', '2:03 h')
    """
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes}:{rest:02} min"
    return f"{minutes // 60}:{minutes % 60:02} h"


def model_table(runs: dict[str, RunFacts]) -> str:
    """Return a Markdown table: which model fits into which device, and by what change."""
    heads = [f"{size} GB" for size in DEVICES]
    lines = [
        "| model | needs | " + " | ".join(heads) + " |",
        "|---|---|" + "---|" * len(DEVICES),
    ]
    for name, run in runs.items():
        # With next to no memory, what a run can do without is left out.
        least = peak_of(replace(run, capacity=1))
        cells = [name, size_text(least.size)]
        for gigabytes in DEVICES:
            fit = fit_into(run, gigabytes * GIB)
            cells.append("yes" if fit.fits else fit.change or "no")
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"
