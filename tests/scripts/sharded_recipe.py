"""Train a recipe with the environment that accelerate's launcher makes for sharded weights.

    accelerate launch ... tests/scripts/sharded_recipe.py ENVIRONMENT RECIPE FLAG ...

ENVIRONMENT is JSON.
"""

import json
import os
import sys

os.environ.update(json.loads(sys.argv[1]))

from support.sharding import shards_on_a_cpu

from grpo_hf import cli

with shards_on_a_cpu():
    cli.main(["train", *sys.argv[2:]])
