"""The training data of the methods that do not sample while they train."""

import json
from collections.abc import Iterator, Sequence
from itertools import cycle, islice
from typing import Any

from grpo_hf.data.completions import as_completions
from grpo_hf.run_files import write_whole

from .start import PROMPTS, Start


def demonstrations(start: Start) -> tuple[list[dict[str, Any]], int]:
    """Return gold solutions of the training prompts up to the budget, and their tokens.

    The prompts start again from the first one if all of them together do not fill the budget.
    """
    rows = []
    spent = 0
    for row in cycle(start.prompts.train.to_list()):
        if spent >= start.settings.budget:
            break
        (completion,) = as_completions([row["answer"]], [row["prompt"]])
        rows.append({"prompt": row["prompt"], "completion": completion})
        spent += start.tokens(row["answer"])
    return rows, spent


def samples_of_base(start: Start, name: str) -> tuple[list[dict[str, Any]], int]:
    """Return training rows for RFT or DPO, and the tokens of all samples.

    RFT learns the correct samples; DPO learns pairs of a correct and a wrong sample. Both methods
    would draw the same samples, so the second one reads the file of the first. Both are charged for
    all of the samples.
    """
    file = start.folder / "samples.json"
    if not file.exists():
        write_whole(file, json.dumps(list(ask_base(start))))
    rows = []
    spent = 0
    for prompt, group in json.loads(file.read_text(encoding="utf-8")):
        spent += start.group_tokens(group)
        rows += rft_rows(prompt, group) if name == "rft" else dpo_rows(prompt, group)
    return rows, spent


def rft_rows(prompt: Any, group: Sequence[tuple[str, bool]]) -> list[dict[str, Any]]:
    """Return one row for each correct sample of a group."""
    rows = []
    for completion in completions_of(prompt, group, right=True):
        rows.append({"prompt": prompt, "completion": completion})
    return rows


def dpo_rows(prompt: Any, group: Sequence[tuple[str, bool]]) -> list[dict[str, Any]]:
    """Return pairs of a correct and a wrong sample of a group; use every sample at most once."""
    correct = completions_of(prompt, group, right=True)
    wrong = completions_of(prompt, group, right=False)
    rows = []
    # Not strict: the longer list's surplus has no partner.
    for chosen, rejected in zip(correct, wrong, strict=False):
        rows.append({"prompt": prompt, "chosen": chosen, "rejected": rejected})
    return rows


def completions_of(prompt: Any, group: Sequence[tuple[str, bool]], *, right: bool) -> list[Any]:
    """Return the correct or the wrong samples of a group, in the prompt's format."""
    texts = [text for text, is_right in group if is_right == right]
    return as_completions(texts, [prompt])


def ask_base(start: Start) -> Iterator[tuple[Any, list[tuple[str, bool]]]]:
    """Yield training prompts, each with a group of base samples, until the budget is spent."""
    from grpo_hf.models.loading import load_base

    model = load_base(start.recipe("base").model)
    spent = 0
    rows = cycle(start.prompts.train.to_list())
    while spent < start.settings.budget:
        batch = list(islice(rows, PROMPTS))
        # `spent` grows with every batch, so no two batches share a seed. A prompt that comes up
        # again in a later round gets other samples.
        groups = start.sample(
            model, batch, start.training.num_generations, seed=start.training.seed + spent
        )
        for row, group in zip(batch, groups, strict=True):
            # The budget can run out within a batch; the rest of the batch is then not used.
            if spent < start.settings.budget:
                spent += start.group_tokens(group)
                yield row["prompt"], group
