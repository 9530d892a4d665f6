"""Which held-out prompts are also among those that a run trains on."""

import hashlib
import json
from collections.abc import Container, Iterable
from typing import Any

from . import rows
from .overlap_text import overlap_text
from .prompts import SYSTEM_ROLES, PromptForm
from .readers import Split

# Hexadecimal characters of a digest: enough that two prompts of a large set do not share one.
_DIGITS = 16


def notes_on_overlap(
    held_out: Split,
    train: Split,
    wanted: str | None,
    needed: Iterable[str] = (),
    gold: Container[str] = (),
) -> list[str]:
    """Return a note on the rows of a test split whose prompts are in the training rows, if any are.

    Args:
        wanted: the column of the prompt, if it is named.
        needed, gold: as in `rows.build_dataset`. Rows that are left out have no prompts of the run.
    """
    asked = _raw_prompts(held_out, rows.prompt_column(held_out, wanted), needed, gold)
    trained = set(_raw_prompts(train, rows.prompt_column(train, wanted), needed, gold))
    said = overlap_text(sum(raw in trained for raw in asked), len(asked))
    return [] if said is None else [f"{said} Answers to these say little about new prompts."]


def note_on_equal_rows(
    held_out: Split, rest: Split, column: str, needed: Iterable[str], gold: Container[str]
) -> str:
    """Return a sentence on equal prompts of rows that were split, or an empty text without any.

    The sentence starts with a space, so that it can follow another one. Other arguments are as in
    `notes_on_overlap`.
    """
    asked = _raw_prompts(held_out, column, needed, gold)
    trained = _raw_prompts(rest, column, needed, gold)
    different = len({*asked, *trained})
    if different == len(asked) + len(trained):
        return ""
    where = "are on both sides" if set(asked) & set(trained) else "stay on one side"
    return f" There are {different} different prompts; equal ones {where}."


def _raw_prompts(
    split: Split, column: str, needed: Iterable[str], gold: Container[str]
) -> list[str]:
    found = []
    for row in split.rows:
        if rows.is_usable(row, column, needed, gold):
            found.append(repr(row.get(column)))
    return found


def digests_of(prompts: Iterable[Any], form: PromptForm) -> list[str]:
    """Return a digest of what each prompt asks, without the system prompt and the instruction.

    A set may be asked with an instruction of its own, and its questions are the same ones.

    Args:
        prompts: as the trainer takes them.
        form: how they were made.
    """
    found = []
    for prompt in prompts:
        text = json.dumps(_asked(prompt, form), sort_keys=True, ensure_ascii=False, default=str)
        digest = hashlib.sha256(text.encode("utf-8", errors="replace"))
        found.append(digest.hexdigest()[:_DIGITS])
    return found


def which_are_in(
    trained: Container[str] | None, prompts: Iterable[Any], form: PromptForm
) -> list[bool] | None:
    """Return whether each prompt is among those that were trained on.

    Args:
        trained: digests of these; None where they are not known, as of a stream.
    """
    if trained is None:
        return None
    return [digest in trained for digest in digests_of(prompts, form)]


def _asked(prompt: Any, form: PromptForm) -> Any:
    if isinstance(prompt, str):
        text = prompt.removeprefix(f"{form.system_prompt}\n\n") if form.system_prompt else prompt
        return _without(text.rstrip("\n"), form.instruction)
    asked = []
    for message in prompt:
        if message["role"] not in SYSTEM_ROLES:
            content = message["content"]
            if isinstance(content, str):
                content = _without(content, form.instruction)
            asked.append([message["role"], content])
    return asked


def _without(text: str, instruction: str | None) -> str:
    return text.removesuffix(f"\n{instruction}") if instruction else text
