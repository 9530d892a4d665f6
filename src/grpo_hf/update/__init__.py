"""An update that computes every token once, with TRL's numbers.

A rollout comes in, as the dictionary of tensors that TRL makes of it; micro-batches and the
log-probabilities of their tokens go out. Prompts are laid down once for all of their completions,
without padding, and each model is measured on a few tokens before it is trusted with that. Where
the numbers differ, or a layer needs something unknown, TRL's own forward runs and the log says why.
May be touched: the forward of the model and of its LoRA layers, which a trainer prepares once.
"""
