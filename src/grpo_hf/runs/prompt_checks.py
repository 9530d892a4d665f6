"""Checks of a run's prompts: whether its template renders them, and whether they fit the model."""

from collections.abc import Sequence
from typing import Any

from datasets import Dataset
from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from ..config import GRPOConfig
from ..data import prompts
from ..data.prompts import CONTINUE
from ..errors import DataError
from ..models.positions import context_of
from .recipe import Recipe


def continue_answers(training: GRPOConfig, asked: Sequence[Any]) -> list[str]:
    """Let the model continue the prompts that end with the beginning of an answer.

    A setting of the user stays: `chat_template_kwargs: {continue_final_message: false}` is TRL's
    way, which closes such a turn and opens another one.

    Returns:
        A sentence about it, if there are such prompts.
    """
    notes = notes_on_begun(training, asked)
    if notes:
        training.chat_template_kwargs = prompts.continuing_options(training.chat_template_kwargs)
    return notes


def notes_on_begun(training: GRPOConfig, asked: Sequence[Any]) -> list[str]:
    """Return a sentence on prompts that begin an answer, where the user has not decided on them."""
    begun = sum(map(prompts.begins_answer, asked))
    if not begun or CONTINUE in (training.chat_template_kwargs or {}):
        return []
    return [
        f"{begun:,} of {len(asked):,} prompts end with the beginning of an answer, which the "
        f"model continues (chat_template_kwargs {{{CONTINUE}: false}} opens a new turn after it)."
    ]


def check_rendered(
    asked: Sequence[Any], source: str, tokenizer: PreTrainedTokenizerBase, training: GRPOConfig
) -> None:
    """Check that every prompt of an evaluation can be rendered.

    Raises:
        DataError: names the first prompt that cannot.
    """
    options = prompts.continuing_options(training.chat_template_kwargs)
    _token_ids(asked, source, tokenizer, options)


def check_lengths(
    dataset: Dataset,
    source: str,
    tokenizer: PreTrainedTokenizerBase,
    config: Any,
    recipe: Recipe,
    tools: Sequence[Any] = (),
) -> int:
    """Check that every prompt can be rendered, and fits the context with a full completion.

    A length that the recipe leaves to this library is shortened, so that they fit.

    Args:
        tools: what the model may call; the prompts describe them.

    Returns:
        The tokens of the longest prompt.

    Raises:
        DataError: names the first prompt that cannot, or the longest.
    """
    training = recipe.training
    options = dict(training.chat_template_kwargs or {})
    if tools:
        options["tools"] = list(tools)
    lengths = []
    for token_ids in _token_ids(dataset["prompt"], source, tokenizer, options):
        lengths.append(len(token_ids))
    context = context_of(config)
    longest = max(lengths)
    if context is None:
        return longest
    # TRL takes None as no limit of its own; then only the prompts themselves can be checked.
    recipe.shorten_completions(context - longest)
    completion = training.max_completion_length or 0
    if longest + completion > context:
        too_long = sum(length + completion > context for length in lengths)
        raise DataError(
            f"{source}: {too_long} of {len(lengths)} prompts do not fit the model's context of "
            f"{context} tokens: the longest (usable row {lengths.index(longest)}) has {longest}, "
            f"and max_completion_length adds {completion}. Shorten or leave out those rows, lower "
            "--max_completion_length, or take a model with a longer context."
        )
    return longest


def _token_ids(
    asked: Sequence[Any],
    source: str,
    tokenizer: PreTrainedTokenizerBase,
    options: dict[str, Any],
) -> list[list[int]]:
    try:
        return prompts.prompt_token_ids(asked, tokenizer, options)
    except (TemplateError, ValueError, TypeError):
        # All at once are faster, and one by one show which it is.
        for index, prompt in enumerate(asked):
            try:
                prompts.prompt_token_ids([prompt], tokenizer, options)
            except (TemplateError, ValueError, TypeError) as error:
                reason = str(error).partition("\n")[0]
                raise DataError(
                    f"{source}: the model's chat template cannot render the prompt of usable row "
                    f"{index} ({reason}). Mend or leave out such rows, or render the prompts "
                    "yourself and give --rendered_prompts true."
                ) from error
        raise
