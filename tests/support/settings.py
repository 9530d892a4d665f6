"""Which settings are ours and not TRL's."""

OURS = {
    "hub_private_repo",
    "push_samples",
    "loss_type",
    "beta",
    "use_bias_correction_kl",
    "reference",
    "packed_update",
    "grouped_rollout",
} | {
    "reference_reset_every",
    "target_kl",
    "dynamic_sampling",
    "max_refills",
    "early_rewards",
    "reward_timeout",
    "reward_workers",
    "max_reward_failures",
    "log_credit",
    "non_finite",
    "resume_changed",
    "process_reward",
    "advantage_estimator",
    "gae_lambda",
    "gae_gamma",
    "critic_learning_rate",
}
