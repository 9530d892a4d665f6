"""Prompts to sample from, and completions with or without groups."""

from grpo_hf import GRPOTrainer

PROMPTS = [[5, 6, 7, 8]] * 4 + [[9, 10]] * 4


def completions(
    trainer: GRPOTrainer, prompts: list[list[int]], *, grouped: bool
) -> list[list[int]]:
    trainer.args.grouped_rollout = grouped
    return trainer._generate_single_turn(prompts, None, {}, trainer.num_generations)[0]
