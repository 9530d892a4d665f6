"""Whether the accuracies of several runs can be compared: the same reward, the same prompts."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .record import RunRecord


def why_not_comparable(runs: Sequence[RunRecord]) -> list[str]:
    """Return sentences on what keeps the accuracies of runs from being compared; none if nothing.

    What a run has not kept is not compared.
    """
    found = []
    judged = {run.name: judge for run in runs if (judge := _judge_of(run)) is not None}
    if len(set(judged.values())) > 1:
        named = ", ".join(f"{name} by {judge}" for name, judge in judged.items())
        found.append(
            f"These runs were judged by different rewards ({named}), so their accuracies are no "
            "comparison of the runs: grpo-hf eval RUN --reward SPEC judges each by the same one."
        )
    prompts = {run.name: asked for run in runs if (asked := _asked(run))}
    if len(set(map(frozenset, prompts.values()))) > 1:
        common = len(set.intersection(*prompts.values()))
        counts = ", ".join(f"{name}: {len(asked)}" for name, asked in prompts.items())
        found.append(
            f"These runs answered different held-out prompts ({counts}; {common} are common to "
            "all), so their accuracies differ by chance and by the prompts as well."
        )
    return found


def _judge_of(run: RunRecord) -> str | None:
    """Return the reward that said what is right, with its file as it is on this machine."""
    rewards = run.recipe.get("rewards")
    if not isinstance(rewards, list) or not rewards:
        return None
    specs = [str(next(iter(spec), "")) if isinstance(spec, dict) else str(spec) for spec in rewards]
    wanted = run.recipe.get("eval_reward")
    chosen = specs[0]
    for spec in specs:
        if wanted is not None and spec.rpartition(":")[2] == wanted:
            chosen = spec
    file, separator, name = chosen.rpartition(":")
    if not separator or not file.endswith(".py"):
        return chosen
    # Specs are relative to the run's folder, and two runs of one reward lie in two folders.
    place = (run.folder / file).resolve()
    try:
        return f"{place.relative_to(Path.cwd())}:{name}"
    except ValueError:
        return f"{place}:{name}"


def _asked(run: RunRecord) -> set[str]:
    prompts: list[Any] = [row.get("prompt") for row in run.answers]
    return set(map(repr, prompts))
