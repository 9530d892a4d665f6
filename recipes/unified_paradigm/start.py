"""What all methods of one seed share."""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from statistics import mean
from typing import Any

from .methods import ONLINE, RATES

RECIPES = Path(__file__).parents[1]

# Prompts per batch when the base is sampled.
PROMPTS = 16


@dataclass(frozen=True)
class Start:
    """Start is what all methods of one seed share: base, prompts, reward and settings."""

    folder: Path
    flags: tuple[str, ...]
    # These settings are read once and kept. Creating new training settings resets accelerate's
    # global state, device included, which must not happen while a trainer uses it.
    training: Any
    prompts: Any
    reward: Any
    settings: argparse.Namespace

    @classmethod
    def of(cls, folder: Path, flags: tuple[str, ...], settings: argparse.Namespace) -> "Start":
        """Check the task, and cold-start the embedded base unless there is its checkpoint."""
        from grpo_hf.runs.preflight import check_model, check_task
        from grpo_hf.runs.recipe import EMBEDDED_MODEL
        from grpo_hf.runs.train import cold_started

        recipe = read_settings([*flags, "--output_dir", str(folder / "base")])
        task = check_task(recipe)
        base = recipe.model.model_name_or_path
        if base == EMBEDDED_MODEL:
            base = cold_started(recipe)
        recipe.model.model_name_or_path = base
        options = recipe.training.chat_template_kwargs
        prompts = check_model(recipe, task)
        # Where prompts begin an answer, the check adds an option that the methods' own settings,
        # read from the flags, do not have; SFT and DPO could not use it either.
        recipe.training.chat_template_kwargs = options
        # The checkpoint has had its cold start, so the methods must not ask for another one.
        base_flags = ("--model_name_or_path", base, "--cold_start_steps", "0")
        return cls(
            folder,
            (*flags, *base_flags),
            recipe.training,
            prompts,
            task.rewards[0],
            settings,
        )

    def recipe(self, name: str) -> Any:
        """Return the settings of a method's run."""
        recipe = read_settings(
            [*self.flags, "--output_dir", str(self.folder / name), *ONLINE.get(name, ())]
        )
        recipe.training.learning_rate *= RATES.get(name, 1.0)
        return recipe

    def right(self, rows: Sequence[dict[str, Any]], texts: Sequence[str]) -> list[bool]:
        """Return for each completion whether it gets the reward's full mark."""
        from grpo_hf.evaluation.answers import right_answers
        from grpo_hf.scoring.scored_reward import ScoredReward

        return list(map(bool, right_answers(ScoredReward(self.reward), rows, texts)))

    def accuracy(self, model: Any) -> float:
        """Return the share of held-out prompts that the model's greedy completions solve."""
        from grpo_hf.evaluation.answers import greedy_of_run

        rows = self.prompts.held_out.to_list()
        texts = greedy_of_run(
            model, self.prompts.tokenizer, prompts_of(rows), self.training, batch_size=len(rows)
        )
        return mean(self.right(rows, texts))

    def sample(
        self, model: Any, rows: Sequence[dict[str, Any]], count: int, seed: int
    ) -> list[list[tuple[str, bool]]]:
        """Sample `count` completions of each prompt as in training; say which are correct."""
        from grpo_hf.evaluation.answers import sampled_completions
        from grpo_hf.rollout.sampling import sampling_of

        groups = sampled_completions(
            model,
            self.prompts.tokenizer,
            prompts_of(rows),
            count,
            sampling=sampling_of(self.training),
            seed=seed,
            max_new_tokens=self.training.max_completion_length,
            batch_size=PROMPTS,
            template_options=self.training.chat_template_kwargs,
        )
        # The reward takes one row per completion.
        row_of_text = []
        texts = []
        for row, group in zip(rows, groups, strict=True):
            row_of_text += [row] * count
            texts += group
        judged = zip(texts, self.right(row_of_text, texts), strict=True)
        judged_groups = []
        for _ in rows:
            judged_groups.append(list(islice(judged, count)))
        return judged_groups

    def tokens(self, text: str) -> int:
        """Return the number of tokens of a completion, its end-of-sequence token included."""
        return len(self.prompts.tokenizer(text, add_special_tokens=False)["input_ids"]) + 1

    def group_tokens(self, group: Sequence[tuple[str, bool]]) -> int:
        """Return the number of tokens of all completions of a group."""
        total = 0
        for text, _ in group:
            total += self.tokens(text)
        return total


def read_settings(flags: Sequence[str]) -> Any:
    """Return the settings of one run."""
    from grpo_hf.runs.recipe import read_recipe

    return read_recipe(flags, default=RECIPES / "paradigm_tiny.yaml")


def prompts_of(rows: Sequence[dict[str, Any]]) -> list[Any]:
    """Return the prompt of every row."""
    return [row["prompt"] for row in rows]
