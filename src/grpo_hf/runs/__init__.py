"""Whole runs: from a recipe to a trained adapter with its evaluation.

A run takes a recipe (a YAML file and flags) and leaves an output folder with the adapter, its
metrics, its checkpoints and a model card; `iterative` repeats GRPO and the reward model's training
in turns. Code here checks, loads, calls the trainer and saves, and it may use every other part of
the library except the command line. It holds no mathematics of its own.
"""
