r"""Train where one process has rows too long for the fast ways and the other one has none.

    accelerate launch --num_processes 2 ... uneven_lengths.py OUTPUT_FOLDER

The first process has short prompts, the second one long prompts: its texts pass the length from
which on the model's rotary positions change, so it samples and updates as TRL does.
"""

import sys

import torch
from datasets import Dataset
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from grpo_hf import GRPOConfig, GRPOTrainer

LIMIT = 24  # tokens, prompt and completion together
CONFIG = LlamaConfig(
    vocab_size=40,
    hidden_size=16,
    intermediate_size=32,
    num_hidden_layers=1,
    num_attention_heads=2,
    num_key_value_heads=2,
    max_position_embeddings=LIMIT,
    rope_parameters={"rope_type": "dynamic", "factor": 4.0, "rope_theta": 10000.0},
    pad_token_id=0,
    bos_token_id=1,
    eos_token_id=2,
)


def token_sum(completion_ids: list[list[int]], **_: object) -> list[float]:
    return [float(sum(ids)) for ids in completion_ids]


def tokenizer() -> PreTrainedTokenizerFast:
    words = ["<pad>", "<s>", "</s>", *(str(number) for number in range(37))]
    known = {word: index for index, word in enumerate(words)}
    of_words = Tokenizer(models.WordLevel(known, unk_token="<pad>"))
    of_words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=of_words, pad_token="<pad>", eos_token="</s>", padding_side="left"
    )


def main(output: str) -> None:
    # The processes share the cores of one machine.
    torch.set_num_threads(1)
    torch.manual_seed(0)
    trainer = GRPOTrainer(
        model=LlamaForCausalLM(CONFIG),
        reward_funcs=token_sum,
        args=GRPOConfig(
            output_dir=output,
            num_generations=4,
            per_device_train_batch_size=4,
            max_completion_length=8,
            max_steps=2,
            logging_steps=1,
            beta=0.0,
            shuffle_dataset=False,
            report_to="none",
            use_cpu=True,
            save_strategy="no",
        ),
        # A step has two prompts, the first of which goes to the first process.
        train_dataset=Dataset.from_list([{"prompt": "3 4 5"}, {"prompt": "6 7 " * 10}] * 4),
        processing_class=tokenizer(),
    )
    trainer.train()
    print(f"rank {trainer.accelerator.process_index} is done")
    trainer.accelerator.end_training()


if __name__ == "__main__":
    main(sys.argv[1])
