"""The mathematics of the paper, and of the methods that it is compared with.

Rewards, values and log-probabilities come in as tensors; advantages, losses and coefficients go
out. The functions are pure, and their equations can be read beside those of arXiv:2402.03300. What
has a state of its own says so: the critic is an adapter on the policy's base with an optimizer of
its own, and the control of β remembers the KL of the last steps. Nothing here reads a file, samples
a completion or touches the policy's weights.
"""
