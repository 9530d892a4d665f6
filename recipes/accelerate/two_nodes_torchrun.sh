#!/bin/bash
# Two machines with 8 GPUs each, started by torchrun. When: as two_nodes.yaml, without accelerate's
# launcher. Run it on both machines:
#
#     NODE=0 ADDRESS=10.0.0.1 bash recipes/accelerate/two_nodes_torchrun.sh recipe.yaml
#     NODE=1 ADDRESS=10.0.0.1 bash recipes/accelerate/two_nodes_torchrun.sh recipe.yaml
set -euo pipefail
exec torchrun \
    --nnodes "${NODES:-2}" --nproc_per_node "${GPUS:-8}" --node_rank "$NODE" \
    --master_addr "$ADDRESS" --master_port "${PORT:-29500}" \
    -m grpo_hf.cli train "$@"
