"""Sampling: prompts come in as token ids, completions go out.

While a rollout is sampled, the adapter is folded into copies of the weights, each distinct prompt
is read once, and rows that are finished leave the batch, where that was measured to give the
tokens of `generate`; elsewhere the model's own way runs. `dynamic_sampling` draws fresh prompts in
the place of groups that teach nothing. vLLM, where it is asked for, is given the adapter by the
files `vllm_*`. May be touched: the model's `generate` and the forward of its linear layers, for the
length of a `with` block. The weights keep every bit.
"""
