"""Answers of several turns: the model calls tools, reads what they return, and goes on.

It is what TRL 1.16 does in a rollout with `tools`, for evaluations that have no trainer.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..data.prompts import CONTINUE
from ..models.positions import context_of
from ..trl_seam import prepare_tool_calls, read_answer, tool_turn_ids
from .sampling import Sample, Written

Messages = list[dict[str, Any]]


@dataclass(frozen=True)
class ToolUse:
    """The tools that a model may call.

    Args:
        tools: functions with docstrings, as chat templates describe them.
        call: takes the tools and a call; returns the turn that answers it.
        most_rounds: how many times results may come back; None for no limit.
    """

    tools: Sequence[Callable[..., Any]]
    call: Callable[[Sequence[Callable[..., Any]], Any], dict[str, Any]]
    most_rounds: int | None = None

    def template_options(
        self, tokenizer: Any, options: Mapping[str, Any] | None = None
    ) -> dict[str, Any]:
        """Return the keyword arguments of the chat template that describe the tools to the model.

        Args:
            options: other arguments of the chat template.

        Raises:
            ConfigError: the chat template has no tools.
        """
        described = {"tools": list(self.tools)} if self.tools else {}
        template = prepare_tool_calls(tokenizer)
        return {**(options or {}), **described, "chat_template": template}


def conversing(
    sample: Sample,
    model: Any,
    tokenizer: Any,
    use: ToolUse,
    template_options: Mapping[str, Any] | None = None,
    *,
    is_cut: Callable[[Sequence[int], int], bool],
) -> Callable[[list[list[int]], int], list[Written]]:
    """Return a function that answers lists of tokens in turns, the model's and those of tools.

    It takes the lists and how many tokens an answer may have at most, results of tools included. A
    result that does not fit is left out, and the answer ends with the call (TRL 1.16).

    Args:
        sample: writes the turns of the model; see `sampling.continuing`.
        template_options: other arguments of the chat template.
        is_cut: whether tokens that were written, of so many at most, were cut off.
    """
    # A tool's turn is rendered without the description of the tools, as in TRL, and a new one of
    # the model opens after it.
    options = {**(template_options or {}), "chat_template": prepare_tool_calls(tokenizer)}
    options.pop(CONTINUE, None)
    context = context_of(model.config) or math.inf

    def converse(asked: list[list[int]], tokens: int) -> list[Written]:
        answers = [_Answer(prompt, [], []) for prompt in asked]
        going_on = answers
        rounds = 0
        while going_on:
            written = sample([answer.prompt + answer.ids for answer in going_on], tokens)
            called = []
            for answer, ids in zip(going_on, written, strict=True):
                room = tokens - len(answer.ids)
                answer.is_cut = is_cut(ids[:room], room)
                calls = answer.take(tokenizer, ids[:room], use)
                if calls and rounds != use.most_rounds:
                    turns = [use.call(use.tools, call) for call in calls]
                    more = tool_turn_ids(tokenizer, turns, options)
                    if answer.fits(more, tokens, context):
                        answer.ids += more
                        answer.messages += turns
                        called.append(answer)
                    else:
                        answer.is_cut = True
            going_on = called
            rounds += 1
        return [Written(answer.messages, answer.is_cut) for answer in answers]

    return converse


@dataclass
class _Answer:
    """The answer to one prompt as far as it has come: its tokens and its messages."""

    prompt: list[int]
    ids: list[int]
    messages: Messages
    is_cut: bool = False

    def take(self, tokenizer: Any, written: list[int], use: ToolUse) -> list[Any]:
        """Add what the model wrote, and return the calls of tools in it."""
        if not written:
            return []
        message = read_answer(tokenizer, written, self.prompt + self.ids, list(use.tools))
        self.ids += written
        self.messages.append(message)
        return message.get("tool_calls") or []

    def fits(self, more: list[int], tokens: int, context: float) -> bool:
        length = len(self.ids) + len(more)
        return length <= tokens and len(self.prompt) + length < context
