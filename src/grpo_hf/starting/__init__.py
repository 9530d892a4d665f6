"""The beginning of a task: from a file of rows to a recipe and a reward.

Names of a model, a data file and columns come in. A recipe with comments, a reward with examples
that can be run, and a schema for editors go out, into a folder where nothing is overwritten.
"""
