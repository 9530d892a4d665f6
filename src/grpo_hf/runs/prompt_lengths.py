"""How long the prompts of a recipe's data are, for a plan: a sample of rows, and no download."""

from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from ..data import prompts, rows
from ..data.readers import EMBEDDED_PROBLEMS, Split, read_split
from ..errors import GrpoError, RewardError
from ..scoring.registry import load_reward
from ..scoring.reward import Reward
from .recipe import Recipe
from .run_data import dataset_of, form_of_prompts, tokenizer_at_hand

# The length of a prompt where nobody says it: a question of a few sentences.
USUAL_TOKENS = 256
# Rows spread over the file; their mean is close enough to that of all.
_SAMPLED = 256
# About so many characters are a token.
_TOKEN_CHARACTERS = 4


@dataclass(frozen=True)
class PromptLengths:
    """Tokens of the prompts of a run.

    Args:
        longest: for the memory.
        mean: for time and cost.
        source: a note that says where they come from.
    """

    longest: int
    mean: int
    source: str


def prompt_lengths(recipe: Recipe, given: int | None) -> PromptLengths:
    """Return the lengths of a recipe's prompts: those given, of its data, or usual ones.

    Args:
        given: tokens of a prompt, where the user says it.
    """
    if given is not None:
        return PromptLengths(given, given, f"prompts are taken to have {given} tokens")
    try:
        return _of_data(recipe)
    # A plan needs no data: the run says what is wrong with it.
    except (GrpoError, OSError, ValueError, TypeError, KeyError) as error:
        reason = str(error).partition("\n")[0]
        return PromptLengths(
            USUAL_TOKENS,
            USUAL_TOKENS,
            f"prompts are taken to have {USUAL_TOKENS} tokens (--prompt_tokens), as the data was "
            f"not looked at: {reason}",
        )


def _of_data(recipe: Recipe) -> PromptLengths:
    """Return the lengths of the prompts in a recipe's data.

    Raises:
        GrpoError, ValueError: they cannot be read here.
    """
    split, total = _sample(recipe)
    tokenizer = tokenizer_at_hand(recipe)
    form, _ = form_of_prompts(recipe, split, tokenizer)
    dataset, _ = dataset_of(recipe, _readable_rewards(recipe, split), split, form)
    if tokenizer is None:
        lengths = [_guess(prompt) for prompt in dataset["prompt"]]
        how = f"a token for {_TOKEN_CHARACTERS} characters, as the tokenizer is not here"
    else:
        lengths = _counted(dataset["prompt"], tokenizer, recipe)
        how = "counted by the model's tokenizer"
    count = f"the {total:,}" if len(lengths) == total else f"{len(lengths):,} of the {total:,}"
    sampled = "a sample of " if total > _SAMPLED else ""
    mean = round(sum(lengths) / len(lengths))
    return PromptLengths(
        max(lengths),
        mean,
        f"prompts have {mean} tokens on average and {max(lengths)} at most, in {sampled}{count} "
        f"rows of {split.source} ({how}; --prompt_tokens for another number)",
    )


def _sample(recipe: Recipe) -> tuple[Split, int]:
    """Return rows evenly spread over the training data, and how many rows that has.

    Raises:
        GrpoError, ValueError: there are none on this machine.
    """
    task = recipe.task
    path = task.dataset_path
    if task.dataset_streaming or path is None:
        raise ValueError("it is streamed" if task.dataset_streaming else "it is not a local file")
    if path not in EMBEDDED_PROBLEMS and not Path(path).exists():
        raise ValueError(f"{path} is not here")
    split = read_split(path=path, seed=recipe.training.seed, split=task.dataset_train_split)
    # Only an optional split may be missing.
    assert split is not None
    total = len(split.rows)
    count = min(total, _SAMPLED)
    spread = [split.rows[number * total // count] for number in range(count)]
    sample = Split(spread, [], split.source)
    return rows.rename_columns(sample, recipe.column_map), split.count


def _readable_rewards(recipe: Recipe, split: Split) -> list[Reward]:
    """Return the rewards that decide which rows are left out: those that find their columns.

    What is wrong with another one, the run says.
    """
    columns = {"prompt", *rows.column_names(split.rows)}
    found = []
    for spec in recipe.task.rewards:
        with suppress(RewardError):
            reward = load_reward(spec, relative_to=recipe.folder)
            if columns.issuperset(reward.columns):
                found.append(reward)
    return found


def _counted(texts: list[Any], tokenizer: PreTrainedTokenizerBase, recipe: Recipe) -> list[int]:
    options = dict(recipe.training.chat_template_kwargs or {})
    return [len(ids) for ids in prompts.prompt_token_ids(texts, tokenizer, options)]


def _guess(prompt: Any) -> int:
    """Return about how many tokens a prompt has."""
    text = prompt
    if not isinstance(prompt, str):
        text = "".join(str(message.get("content") or "") for message in prompt)
    return max(1, round(len(text) / _TOKEN_CHARACTERS))
