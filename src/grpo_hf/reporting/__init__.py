"""What a run says and writes.

Numbers that are known already come in: metrics, rewards, advantages, facts of the run. Lines for a
terminal, an HTML page, a metrics file, the credit file and the model card go out. Nothing here
computes a gradient or decides how training goes on. May be touched: the files of a run in its
output folder.
"""
