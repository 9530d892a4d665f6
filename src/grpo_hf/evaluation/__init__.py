"""Evaluation: whether training made the model better, and how sure that is.

A model, prompts and a reward come in; completions, right answers, accuracies with their intervals
and the comparison of base and adapter go out. Nothing here may change a weight or a run's random
numbers: a model is put into evaluation mode and back, and an adapter is switched off and on again.
"""
