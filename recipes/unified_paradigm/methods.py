"""The methods that are compared, and how their runs differ from one another."""

# The methods that sample from the policy while they train, each with its flags for GRPOTrainer.
ONLINE = {
    "online_rft": ("--advantage_estimator", "reward", "--beta", "0"),
    "ppo": ("--advantage_estimator", "gae"),
    "grpo": (),
    "grpo_process": ("--process_reward", "monte_carlo(n=2)", "--reward_weights", "0", "1"),
    "grpo_gain": (
        "--process_reward",
        "monte_carlo(n=4, credit='gain', groups='mixed')",
        "--reward_weights",
        "0",
        "1",
    ),
}

# Factors of the learning rate; the text of recipes/paradigm.py says how they were found.
RATES = {
    "sft": 4.0,
    "rft": 2.0,
    "dpo": 0.125,
    "online_rft": 1.0,
    "ppo": 1.0,
    "grpo": 1.0,
    "grpo_process": 2.0,
    "grpo_gain": 2.0,
}
