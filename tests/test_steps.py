"""Steps: where a text is cut, and the tokens at which its steps end, against the bytes of those tokens."""

import itertools
import random

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from grpo_hf.errors import DataError
from grpo_hf.steps import StepRewards, assistant_text, split_steps, step_end_tokens, without_end

ALPHABET = "ab 12+=.\n\t" + "äß€漢字🙂🧮é\u0301"
TEXTS = ["12 + 12 = 24\n\n24", "aa\n\nbb\n漢字 = 12\n🙂🙂", "a.\nb.\n12 12\n", "é\u0301é\u0301 漢\n字"]


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level BPE without a pre-tokenizer that cuts, so that merges run over newlines and characters."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=360, special_tokens=["<|end|>"], initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    backend.train_from_iterator(TEXTS * 20, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|end|>")


def byte_lengths(tokenizer: PreTrainedTokenizerFast, ids: list[int]) -> list[int]:
    """In GPT-2's alphabet a byte is a character; special tokens hold none of the text."""
    return [0 if i in tokenizer.all_special_ids else len(tokenizer.convert_ids_to_tokens(i)) for i in ids]


def oracle(tokenizer: PreTrainedTokenizerFast, text: str, ids: list[int], ends: list[int]) -> list[int]:
    """The first token with which as many bytes are written as the text up to the end has."""
    written = list(itertools.accumulate(byte_lengths(tokenizer, ids)))
    complete = [next(i for i, count in enumerate(written) if count >= len(text[:end].encode())) for end in ends]
    return [index if end < len(text) else len(ids) - 1 for index, end in zip(complete, ends, strict=True)]


def as_written(tokenizer: PreTrainedTokenizerFast, text: str, chance: random.Random) -> list[int]:
    """Ids that decode to the text and that the tokenizer would not have written: pieces cut at random bytes."""
    data = text.encode()
    alphabet = {byte: char for char, byte in zip(_alphabet(), range(256), strict=True)}
    ids, start = [], 0
    while start < len(data):
        size = next(
            size
            for size in range(chance.randint(1, 6), 0, -1)
            if "".join(alphabet[b] for b in data[start : start + size]) in tokenizer.get_vocab()
        )
        ids.append(tokenizer.convert_tokens_to_ids("".join(alphabet[b] for b in data[start : start + size])))
        start += size
    return ids


def _alphabet() -> list[str]:
    """GPT-2's character for each byte, read from the tokenizer library: what it makes of each byte alone."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = iter(range(256, 512))
    return [chr(byte) if byte in printable else chr(next(others)) for byte in range(256)]


@pytest.mark.parametrize("seed", range(300))
def test_steps_end_at_the_token_that_completes_them(tokenizer: PreTrainedTokenizerFast, seed: int) -> None:
    chance = random.Random(seed)
    text = "".join(chance.choices([*ALPHABET, *TEXTS], k=chance.randint(1, 25)))
    canonical = tokenizer(text, add_special_tokens=False)["input_ids"]
    sampled = as_written(tokenizer, text, chance)
    assert tokenizer.decode(sampled) == text
    ends = sorted(chance.sample(range(1, len(text) + 1), k=min(len(text), 5)))
    for ids in (canonical, [*canonical, 0], sampled, [*sampled, 0]):
        assert step_end_tokens(tokenizer, text, ids, ends) == oracle(tokenizer, text, ids, ends)


def test_a_merge_over_the_end_ends_the_step(tokenizer: PreTrainedTokenizerFast) -> None:
    text = TEXTS[0]
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    starts = [start for start, _ in tokenizer(text, return_offsets_mapping=True)["offset_mapping"]]
    (wide,) = [i for i, end in enumerate([*starts[1:], len(text)]) if starts[i] < text.index("\n") + 1 < end]
    assert step_end_tokens(tokenizer, text, ids, [text.index("\n") + 1]) == [wide]


def test_the_end_of_the_turn_belongs_to_the_last_step(tokenizer: PreTrainedTokenizerFast) -> None:
    ids = [*tokenizer("12\n24", add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
    assert step_end_tokens(tokenizer, "12\n24", ids, [3, 5])[-1] == len(ids) - 1
    assert step_end_tokens(tokenizer, "12\n24", ids, [3])[-1] < len(ids) - 2


def test_messages_are_found_among_what_else_was_written(tokenizer: PreTrainedTokenizerFast) -> None:
    decoded = "aa 12<call>bb</call>12\n24"
    completion = [
        {"role": "assistant", "content": "aa 12"},
        {"role": "tool", "content": "99"},
        {"role": "assistant", "content": [{"type": "text", "text": "12\n24"}]},
    ]
    assert assistant_text(completion) == "aa 12\n12\n24"
    ids = as_written(tokenizer, decoded, random.Random(0))
    ends = [2, 6, 9, 11]  # in the first message, at its end, in the second, at the end of all
    wanted = [decoded.index(" 12"), decoded.index("<"), decoded.rindex("\n") + 1]
    found = step_end_tokens(tokenizer, completion, ids, ends)
    assert found == [*oracle(tokenizer, decoded, ids, wanted), len(ids) - 1]
    with pytest.raises(DataError, match="not part of the decoded completion"):
        step_end_tokens(tokenizer, [{"role": "assistant", "content": "zz"}], ids, [1])


@pytest.mark.parametrize(
    ("text", "by", "steps"),
    [
        ("a\n\nb\nc", "lines", ["a\n\n", "b\n", "c"]),
        ("\n\na\n", "lines", ["\n\na\n"]),
        ("a\nb\n \nc\n\n", "blank_lines", ["a\nb\n \n", "c\n\n"]),
        ("So 1.5 + 2 = 3.5. Then? Yes!", "sentences", ["So 1.5 + 2 = 3.5. ", "Then? ", "Yes!"]),
        ("一。二。", "sentences", ["一。", "二。"]),
        ("1 ки 2 ки\n", "ки", ["1 ки", " 2 ки\n"]),
        ("a.b", ".", ["a.", "b"]),
        ("", "lines", []),
        (" \n", "lines", []),
        ("no end", "ки", ["no end"]),
    ],
)
def test_texts_are_cut(text: str, by: str, steps: list[str]) -> None:
    ends = split_steps(text, by)
    assert [text[start:end] for start, end in zip([0, *ends], ends, strict=False)] == steps
    StepRewards(ends, [0.0] * len(ends))


@pytest.mark.parametrize(
    ("ends", "rewards"),
    [([3], [1.0, 2.0]), ([0], [1.0]), ([3, 3], [1.0, 1.0]), ([5, 3], [1.0, 1.0]), ([3], [float("inf")])],
)
def test_impossible_steps_are_refused(ends: list[int], rewards: list[float]) -> None:
    with pytest.raises(ValueError, match="expected"):
        StepRewards(ends, rewards)


def test_an_answer_without_the_end_of_its_turn(tokenizer: PreTrainedTokenizerFast) -> None:
    text, end = tokenizer("12 + 12").input_ids, tokenizer.eos_token_id
    for ids in (text, [*text, end], [*text, end, end]):
        assert without_end(tokenizer, ids) == text
    assert without_end(tokenizer, [end, *text, end]) == [end, *text]
    assert without_end(tokenizer, [end, end]) == without_end(tokenizer, []) == []
