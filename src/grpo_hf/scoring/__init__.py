"""Rewards that cannot hurt a run.

Completions and the columns of the dataset come in; numbers, step rewards, or failures with a reason
go out. A reward is found by its name, file, module or entry point, and it may hang, crash, use up
memory or return nonsense: it runs in a process of its own that is replaced, and what failed is left
out of its group. Where a reward has to see the trainer's own objects, it runs in the trainer, and
the log says so. May be touched: processes and temporary folders that are started here. No weight of
the model changes. Monte Carlo step rewards sample from the policy, and use up random numbers of the
run.
"""
