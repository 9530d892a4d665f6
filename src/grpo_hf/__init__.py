"""Group Relative Policy Optimization on one frozen base model."""
