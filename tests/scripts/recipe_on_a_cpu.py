"""Train a recipe as `grpo-hf train` does, where accelerate and vLLM would want an accelerator.

accelerate launch --config_file FILE tests/scripts/recipe_on_a_cpu.py RECIPE FLAG ...
"""

import os
import sys
from contextlib import nullcontext

if os.environ.get("ACCELERATE_USE_DEEPSPEED") == "true":
    import deepspeed  # noqa: F401
from support.sharding import shards_on_a_cpu
from support.vllm import vllm_installed

from grpo_hf import cli

engine = vllm_installed() if "--use_vllm" in sys.argv else nullcontext()
with shards_on_a_cpu(), engine:
    cli.main(["train", *sys.argv[1:]])
