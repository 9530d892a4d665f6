"""A tiny Llama with random weights, and the same weights as a GGUF file with a tokenizer in it."""

from pathlib import Path

import gguf
import numpy as np
import torch
from tokenizers.pre_tokenizers import ByteLevel
from transformers import LlamaConfig, LlamaForCausalLM

SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
MERGED = {"ĊĊ": "Ċ Ċ", "ĠĠ": "Ġ Ġ"}
VOCAB = [*SPECIAL, *sorted(ByteLevel.alphabet()), *MERGED]
CHAT_TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
)


def tiny_llama() -> LlamaForCausalLM:
    """The model whose weights stand in the GGUF file."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(VOCAB),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        tie_word_embeddings=True,
    )
    return LlamaForCausalLM(config)


def write_gguf(model: LlamaForCausalLM, path: Path) -> None:
    """Write the model's weights and a byte-level tokenizer as one GGUF file."""
    config = model.config
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(VOCAB)
    writer.add_token_types(
        [gguf.TokenType.CONTROL if t in SPECIAL else gguf.TokenType.NORMAL for t in VOCAB]
    )
    writer.add_token_merges(list(MERGED.values()))
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_pad_token_id(2)
    writer.add_unk_token_id(0)
    writer.add_chat_template(CHAT_TEMPLATE)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config.num_hidden_layers)
    for name, parameter in model.named_parameters():
        values = parameter.detach().numpy()
        if "q_proj" in name:
            values = _rope_pairs_adjacent(values, config.num_attention_heads)
        elif "k_proj" in name:
            values = _rope_pairs_adjacent(values, config.num_key_value_heads)
        writer.add_tensor(names.get_name(name, try_suffixes=(".weight",)), values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _rope_pairs_adjacent(weight: np.ndarray, heads: int) -> np.ndarray:
    """GGUF keeps the two rows that RoPE rotates together side by side; transformers keeps them
    half a head apart.
    """
    halves = weight.reshape(heads, 2, -1, weight.shape[1])  # (heads, half, pair, in)
    return np.ascontiguousarray(halves.swapaxes(1, 2).reshape(weight.shape))
