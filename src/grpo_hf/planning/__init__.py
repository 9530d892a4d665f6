"""What a run will need, before a weight is loaded.

Settings and a model's configuration come in; the geometry of its batches, the memory of each phase,
what fits into which device, and tokens, time and cost go out. Models are built on torch's `meta`
device, where weights have shapes and no bytes. Nothing here changes a run.
"""
