"""Parts of recipes/process_reward_model.py, which finds first mistakes in chains of reasoning.

traces      the data, and how it is dealt out
lessons     the reward model, and what it reads of a trace
measures    which mistakes are found
"""
