"""grpo-hf's trainer beside TRL's: the same work, in the same process, in turns. `make bench` runs all of it.

    common.py     timing, turns, tables, JSON
    sides.py      the trainers that are compared
    peer.py       PyPI's prefix-grouper as a third side of the update
    batches.py    crafted batches, recorded completions, forced lengths
    flops.py      the operations that an update cannot do without
    update.py  rollout.py  step.py  memory.py    one benchmark each
    sweep.py  plot.py    the update against prompt length and group size, and its picture
    record.py     samples the completions in data/ once

Importable from the root of the repository only; not part of the installed package.
"""
