"""Reward functions, one flat file each; every one is also an entry point of the group `grpo_hf.rewards`."""
