#!/bin/bash
# Two vLLM servers on GPUs 2 and 3, and a training on GPUs 0 and 1. When: as vllm_servers.yaml.
#
#     MODEL=Qwen/Qwen2.5-7B-Instruct bash recipes/accelerate/vllm_servers.sh recipe.yaml
set -euo pipefail
servers=()
trap 'kill "${servers[@]}" 2>/dev/null || true' EXIT
for number in 0 1; do
    CUDA_VISIBLE_DEVICES=$((2 + number)) VLLM_ALLOW_RUNTIME_LORA_UPDATING=True \
        vllm serve "$MODEL" --port $((8000 + number)) \
        --enable-lora --max-lora-rank "${RANK:-16}" --logprobs-mode processed_logprobs &
    servers+=($!)
done
# The training waits until the servers answer, ten minutes at most.
accelerate launch --config_file recipes/accelerate/vllm_servers.yaml \
    -m grpo_hf.cli train "$@" --model_name_or_path "$MODEL" \
    --use_vllm true --vllm_mode server \
    --vllm_server_base_url http://localhost:8000,http://localhost:8001 \
    --vllm_server_timeout 600
