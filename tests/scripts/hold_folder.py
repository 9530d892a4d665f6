"""Hold an output folder for a minute, in a process group: FOLDER prepares|begins [forks]."""

import os
import sys
import time
from pathlib import Path

from accelerate import Accelerator

from grpo_hf.durability.output_folder import claim_output_folder

folder, stage, *forks = sys.argv[1:]
os.setsid()
claim_output_folder(Path(folder), Accelerator(cpu=True) if stage == "begins" else None)
if forks and os.fork() == 0:
    time.sleep(60)
    os._exit(0)
print("held", flush=True)
time.sleep(60)
