"""Read the training and test data, and turn each row into a prompt.

Comes in: a local file or folder, a dataset on the Hub, or the embedded word problems; and the names
of the columns that hold the prompt and what the rewards need. Goes out: a `datasets.Dataset` (or a
stream) with a column `prompt`, and a list of the rows that were left out, each with its file, its
line and the reason. The other files of this room are helpers on plain values: the text of a
completion, token ids of prompts, and batches of row numbers. May be touched: nothing. Files are
only read, and rows are copied before they change. The Hub's library may fill its own cache on disk.
"""
