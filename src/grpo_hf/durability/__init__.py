"""A run that survives.

What a trainer has to remember comes in; checkpoints that are whole, a run that goes on exactly
where it was, and reasons to stop go out. Nothing here changes what a run that is left alone learns.
"""
