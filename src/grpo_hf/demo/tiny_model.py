"""The embedded model: a Llama of about 0.9M parameters and its tokenizer.

Both are made from a seed, without any download. Figures in the documentation depend on every value
in this file.
"""

from collections.abc import Iterator
from itertools import islice

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast, set_seed

from .word_problems import word_problems

CHAT_TEMPLATE = (
    "{% for message in messages %}<|{{ message['role'] }}|>{{ message['content'] }}"
    "{% if message['role'] == 'assistant' %}<|end|>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
# Special tokens get the first ids, in this order: padding is 0, the end of a turn is 1.
_SPECIAL = ["<|pad|>", "<|end|>", "<|system|>", "<|user|>", "<|assistant|>"]
# 256 bytes and the special tokens leave room for about 200 pieces of words. The problems use few
# words, and a small vocabulary keeps the embedding small.
_VOCABULARY = 480
# The tokenizer learns from problems of the cold start, so it has seen no held-out problem.
_TOKENIZER_PROBLEMS = 2000


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """Return a byte-level BPE tokenizer with a chat template, trained on the problems' texts.

    Every digit is a token of its own.
    """
    backend = Tokenizer(models.BPE())
    # One token per digit: otherwise frequent numbers would become tokens, and the model would have
    # to learn the sums of each of them.
    digits = pre_tokenizers.Digits(individual_digits=True)
    bytes_of_words = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.pre_tokenizer = pre_tokenizers.Sequence([digits, bytes_of_words])
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=_VOCABULARY,
        special_tokens=_SPECIAL,
        # All bytes, not only those of the problems, so that any text can be tokenized.
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(_problem_texts(), trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, eos_token="<|end|>", pad_token="<|pad|>"
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def _problem_texts() -> Iterator[str]:
    for row in islice(word_problems("cold_start"), _TOKENIZER_PROBLEMS):
        yield f"{row['question']}\n{row['answer']}"


def tiny_config(tokenizer: PreTrainedTokenizerFast) -> LlamaConfig:
    """Return the configuration of a Llama with 4 layers of width 128, for 256 tokens."""
    return LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=256,
        tie_word_embeddings=True,
        # LlamaConfig's default for this is token 1, which is "<|end|>" here.
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )


def tiny_model(tokenizer: PreTrainedTokenizerFast, *, seed: int = 0) -> LlamaForCausalLM:
    """Return the model of that configuration with random weights, in float32.

    The global random state is set to the seed.
    """
    set_seed(seed)
    return LlamaForCausalLM(tiny_config(tokenizer))
