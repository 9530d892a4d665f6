"""Train in one of several processes, sampling at a server: CHECKPOINT FOLDER URL.

Each process writes the names of adapters that it continued texts with into `continued-RANK.json`.
"""

import json
import sys
from pathlib import Path

from accelerate import PartialState
from datasets import Dataset
from peft import LoraConfig

from grpo_hf import GRPOConfig, GRPOTrainer, reward_settings
from grpo_hf.rollout.vllm_engine import close_engines


@reward_settings(in_process=True)
def lengths(completions, **_):
    return [float(len(text)) for text in completions]


checkpoint, folder, url = sys.argv[1:]
trainer = GRPOTrainer(
    checkpoint,
    lengths,
    GRPOConfig(
        output_dir=folder,
        num_generations=4,
        per_device_train_batch_size=4,
        max_completion_length=6,
        max_steps=2,
        learning_rate=0.05,
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        use_cpu=True,
        gradient_checkpointing=False,
        process_reward="monte_carlo(n=2, steps='1')",
        use_vllm=True,
        vllm_mode="server",
        vllm_server_base_url=url,
        vllm_server_timeout=5,
        model_init_kwargs={"dtype": "float32"},
    ),
    train_dataset=Dataset.from_list([{"prompt": f"{number} + 1 = "} for number in range(8)]),
    peft_config=LoraConfig(r=4, target_modules="all-linear"),
)
trainer.train()
client = trainer.vllm_generation.vllm_client
rank = PartialState().process_index
# Each process asks as often as it likes.
for _ in range(rank + 1):
    written = client.generate([[5, 6]], n=1, max_tokens=3, temperature=0.0, logprobs=0)
answer = [client._adapter[0], written["completion_ids"][0]]
(Path(folder) / f"continued-{rank}.json").write_text(json.dumps(answer))
PartialState().wait_for_everyone()
close_engines()
