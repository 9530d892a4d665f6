"""Compare grpo-hf's trainer with TRL's: the same work, in the same process, in turns.

`make bench` runs all benchmarks.

    common.py     sides, flags, machine, tables, JSON
    timing.py     clock and turns, rows of times
    sides.py      the trainers that are compared
    peer.py       PyPI's prefix-grouper as a third side of the update
    batches.py    crafted batches, recorded completions, forced lengths
    flops.py      the number of operations that an update needs
    update.py  rollout.py  hybrids.py  step.py  memory.py  plan.py  scoring.py    one benchmark each
    engines.py            rollouts by vLLM beside those of transformers
    learning.py           a real model on the tasks of tasks.py, with several seeds
    learning_page.py      the records of such runs as a page of the documents
    sweeps.py  sweeps_page.py    one task at several values of one setting, and the page of that
    experiments.py  experiments_page.py    the experiments of docs/results.md, and that page
    experiment_readers.py  experiment_paradigm.py    what recipes have written, as tables
    gpu_check.py  gpu_*.py    all of it on a GPU in 8 minutes, and whether it is right there
    sweep.py  plot.py    the update for several prompt lengths and group sizes, and its picture
    record.py     samples the completions in data/ once

The package can be imported from the root of the repository only. It is not installed.
"""

# Before transformers, whose import makes bitsandbytes log a line that this import keeps out.
import grpo_hf as grpo_hf
