"""Train and use a reward model that shares the policy's frozen base, so no second model is loaded.

Comes in: a PEFT model with the policy on it, its tokenizer, and examples to learn from: pairs of
completions of which one is the better, or steps with a label from 0 to 1. `step_labels` makes such
labels from a model's own samples. Goes out: scores of completions or of their steps, reward
functions for a trainer, and a folder in PEFT's format that other programs can load. May be touched:
the adapters of the PEFT model, and the folder or Hub repository that a reward model is saved to. A
reward model adds one adapter to the base, and trains only this adapter and its own scalar head. The
policy's weights, the active adapter, the modes of the modules and torch's random state are
afterwards what they were.
"""
