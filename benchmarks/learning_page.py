"""Write docs/learning.md and its pictures from the records of `benchmarks.learning`."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import yaml
from jinja2 import Environment, StrictUndefined

from grpo_hf.run_report.points import trailing

from .common import Row

TEMPLATE = Path(__file__).parent / "data" / "learning.md.jinja"
# Settings that say where a run writes, not what it does.
UNSAID = (
    "dataset_path",
    "output_dir",
    "report_to",
    "save_strategy",
    "logging_steps",
    "use_cpu",
    "eval_rows",
)
# Steps whose mean is drawn as a line; a single step is the mean of a few prompts.
WINDOW = 8


def write_page(records: Path, docs: Path) -> Path:
    """Write the page and a picture for each record, and return the page.

    Raises:
        SystemExit: there is no record.
    """
    found = [
        json.loads(file.read_text(encoding="utf-8")) for file in sorted(records.glob("*.json"))
    ]
    if not found:
        raise SystemExit(f"error: {records} holds no record. `--task NAME` makes one.")
    for record in found:
        draw(record, docs / f"learning_{record['task']}.png")
    page = docs / "learning.md"
    text = rendered(TEMPLATE, found, share=share, gain=gain, settings=settings_text)
    page.write_text(text, encoding="utf-8")
    return page


def rendered(template: Path, records: Sequence[Row], **filters: Callable[..., Any]) -> str:
    """Return a page of the documents, made of records."""
    environment = Environment(
        undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True
    )
    environment.filters.update(filters)
    made = environment.from_string(template.read_text(encoding="utf-8"))
    return made.render(records=records)


def share(estimate: Row) -> str:
    """Return a share with its interval: `0.310 [0.249, 0.377]`."""
    return f"{estimate['value']:.3f} [{estimate['low']:.3f}, {estimate['high']:.3f}]"


def gain(estimate: Row) -> str:
    """Return a difference with its interval: `+0.075 [+0.013, +0.137]`."""
    return f"{estimate['value']:+.3f} [{estimate['low']:+.3f}, {estimate['high']:+.3f}]"


def settings_text(record: Row) -> str:
    """Return the recipe of a record as YAML, without what says only where it is written."""
    said = {name: value for name, value in record["settings"].items() if name not in UNSAID}
    text: str = yaml.safe_dump(said, sort_keys=False, allow_unicode=True)
    return text.rstrip()


def running_mean(values: Sequence[float], window: int = WINDOW) -> list[float]:
    """Return the mean of each value and those before it, at most `window` of them."""
    return [mean for _, mean in trailing(list(enumerate(values)), window)]


def draw(record: Row, output: Path) -> None:
    """Draw the reward and the KL of every seed over the steps, and the accuracy at both ends."""
    import matplotlib

    # This backend writes files and needs no display.
    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(
        1, 3, figsize=(10, 3.2), layout="constrained", width_ratios=(3, 2, 2)
    )
    # Colours that stay apart for a colour-blind reader (Okabe and Ito), and a line style each.
    colours = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9")
    styles = ("-", "--", "-.", ":", (0, (5, 1)))
    for position, seed in enumerate(record["seeds"]):
        look = {"color": colours[position % 5], "linestyle": styles[position % 5]}
        steps = range(1, len(seed["curves"]["reward"]) + 1)
        label = f"seed {seed['seed']}"
        axes[0].plot(steps, running_mean(seed["curves"]["reward"]), label=label, **look)
        axes[1].plot(steps, running_mean(seed["curves"]["kl"]), **look)
        draw_ends(axes[2], seed, position, look["color"])
    axes[0].set_title(f"reward, mean of {WINDOW} steps", fontsize=9)
    axes[0].legend(fontsize=8)
    axes[1].set_title("KL to the base", fontsize=9)
    axes[2].set_title("held-out problems right, 95%", fontsize=9)
    axes[2].set_xticks([0, 1], ["base", "adapter"])
    axes[2].set_xlim(-0.4, 1.4)
    for axis in axes:
        axis.set_ylim(bottom=0)
        axis.grid(alpha=0.3)
    for axis in axes[:2]:
        axis.set_xlabel("step", fontsize=8)
    model = record["settings"]["model_name_or_path"]
    figure.suptitle(f"{record['task']}: {model}, GRPO with LoRA", fontsize=10)
    figure.savefig(output, dpi=130)
    pyplot.close(figure)


def draw_ends(axis: Any, seed: Row, position: int, colour: str) -> None:
    """Draw the accuracy of base and adapter with their intervals, joined by a line."""
    values = []
    errors: tuple[list[float], list[float]] = ([], [])
    for side in ("base", "adapter"):
        accuracy = seed[side]["accuracy"]
        values.append(accuracy["value"])
        errors[0].append(accuracy["value"] - accuracy["low"])
        errors[1].append(accuracy["high"] - accuracy["value"])
    # Seeds stand beside each other.
    places = [position * 0.06, 1 + position * 0.06]
    axis.errorbar(places, values, yerr=errors, color=colour, marker="o", markersize=4, capsize=2)
