"""Make everything that the offline demo needs: problems, a tokenizer, and a small trained model.

Comes in: a seed, the number of supervised steps, and a cache folder. Goes out: word problems as
rows with `question` and `answer`; a Llama of about 0.9M parameters with its tokenizer; and, from
the cold start, the folder of a checkpoint that knows the answer format but still calculates badly.
The same seed gives the same problems on every machine. May be touched: the cache folder, and the
global random state, which `tiny_model` and the supervised trainer set to the seed. Nothing is
downloaded.
"""
