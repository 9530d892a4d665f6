"""Choose the checkpoint to go on from, each process in a folder of its own: ROOT/machine-RANK."""

import sys
from pathlib import Path

from accelerate import Accelerator

from grpo_hf.durability.resume import checkpoint_for

accelerator = Accelerator(cpu=True)
run = Path(sys.argv[1]) / f"machine-{accelerator.process_index}"
found = checkpoint_for(run, "auto", accelerator)
print("from", found and found.name, flush=True)
