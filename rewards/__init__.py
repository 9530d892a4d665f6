"""Reward functions, one file each.

Each of them is also an entry point of the group `grpo_hf.rewards`.
"""
