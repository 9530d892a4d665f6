"""Where a text is cut into steps, and the tokens at which they end, against those tokens' bytes."""

import itertools
import random
import re
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from grpo_hf.data.completions import completion_text
from grpo_hf.errors import DataError
from grpo_hf.scoring.steps import (
    StepRewards,
    found_steps,
    split_steps,
    step_end_tokens,
    without_end,
)

ROOT = Path(__file__).parents[2]

ALPHABET = "ab 12+=.\n\t" + "äß€漢字🙂🧮é\u0301"
# The pre-tokenizer of cl100k, Llama 3 and Qwen: newlines go with the punctuation or the white space
# before them.
CL100K = r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
TEXTS = [
    "12 + 12 = 24\n\n24",
    "aa\n\nbb\n漢字 = 12\n🙂🙂",
    "a.\nb.\n12 12\n",
    "é\u0301é\u0301 漢\n字",
]


def byte_level(
    pre_tokenizer: Any, texts: list[str], vocab_size: int, trim: bool = False
) -> PreTrainedTokenizerFast:
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer, backend.decoder = pre_tokenizer, decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=["<|end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    backend.train_from_iterator(texts * 20, trainer)
    if trim:
        backend.post_processor = processors.ByteLevel(trim_offsets=True)
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|end|>")


@pytest.fixture(scope="module", params=[False, True], ids=["whole", "trimmed"])
def tokenizer(request: pytest.FixtureRequest) -> PreTrainedTokenizerFast:
    """Byte-level BPE whose merges run over newlines and characters: nothing cuts before them.

    Its offsets are those of whole tokens, or without the white space around them.
    """
    uncut = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    return byte_level(uncut, TEXTS, 360, trim=request.param)


@pytest.fixture(scope="module", params=["gpt2", "gpt2 trimmed", "cl100k", "smollm2"])
def words(request: pytest.FixtureRequest) -> Any:
    """A tokenizer of words: two ways of cutting a text before the merges, and a real one."""
    if request.param == "smollm2":
        folder = ROOT / "models" / "smollm2-135m-instruct"
        return (
            AutoTokenizer.from_pretrained(folder)
            if folder.is_dir()
            else pytest.skip(f"{folder.name} is not there")
        )
    texts = ["".join(steps) for _, steps in CUTS]
    if request.param == "cl100k":
        cut = pre_tokenizers.Split(Regex(CL100K), "isolated")
        return byte_level(
            pre_tokenizers.Sequence(
                [cut, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
            ),
            texts,
            600,
        )
    gpt2 = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    return byte_level(gpt2, texts, 600, trim=request.param == "gpt2 trimmed")


CUTS = [
    ("sentences", ["She has 7 apples.", " Then she eats 2.", " So 5 are left"]),
    ("sentences", ["He said (so (there.))", ' "Why?!"', " Nobody knows...", "  The end. "]),
    ("sentences", ["She has 7 apples. \n\n", "Then she eats.\n", " So 5\n", "are left."]),
    ("lines", ["40 + 20 = 60\n", "2 + 5 = 7.\n\n", "  So it is \n \n", "#### 67\n"]),
    ("blank_lines", ["40 + 20\nis 60\n\n", "  2 + 5 = 7.\n \n\n", "So there\n\n"]),
]


def byte_lengths(tokenizer: PreTrainedTokenizerFast, ids: list[int]) -> list[int]:
    """In GPT-2's alphabet a byte is a character; special tokens hold none of the text."""
    return [
        0 if i in tokenizer.all_special_ids else len(tokenizer.convert_ids_to_tokens(i))
        for i in ids
    ]


def oracle(
    tokenizer: PreTrainedTokenizerFast, text: str, ids: list[int], ends: list[int]
) -> list[int]:
    """The first token with which as many bytes are written as the text up to the end has."""
    written = list(itertools.accumulate(byte_lengths(tokenizer, ids)))
    complete = [
        next(i for i, count in enumerate(written) if count >= len(text[:end].encode()))
        for end in ends
    ]
    return [
        index if end < len(text) else len(ids) - 1
        for index, end in zip(complete, ends, strict=True)
    ]


def as_written(tokenizer: PreTrainedTokenizerFast, text: str, chance: random.Random) -> list[int]:
    """Ids that decode to the text, but cut at random bytes, as no tokenizer would write it."""
    data = text.encode()
    alphabet = {byte: char for char, byte in zip(_alphabet(), range(256), strict=True)}
    ids, start = [], 0
    while start < len(data):
        size = next(
            size
            for size in range(chance.randint(1, 6), 0, -1)
            if "".join(alphabet[b] for b in data[start : start + size]) in tokenizer.get_vocab()
        )
        ids.append(
            tokenizer.convert_tokens_to_ids(
                "".join(alphabet[b] for b in data[start : start + size])
            )
        )
        start += size
    return ids


def _alphabet() -> list[str]:
    """GPT-2's character for each byte: what the tokenizer library makes of that byte alone."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = iter(range(256, 512))
    return [chr(byte) if byte in printable else chr(next(others)) for byte in range(256)]


@pytest.mark.parametrize("seed", range(150))
def test_steps_end_at_the_token_that_completes_them(
    tokenizer: PreTrainedTokenizerFast, seed: int
) -> None:
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
    (wide,) = [
        i
        for i, end in enumerate([*starts[1:], len(text)])
        if starts[i] < text.index("\n") + 1 < end
    ]
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
    assert completion_text(completion) == "aa 12\n12\n24"
    ids = as_written(tokenizer, decoded, random.Random(0))
    ends = [2, 6, 9, 11]  # in the first message, at its end, in the second, at the end of all
    wanted = [decoded.index(" 12"), decoded.index("<"), decoded.rindex("\n") + 1]
    found = step_end_tokens(tokenizer, completion, ids, ends)
    assert found == [*oracle(tokenizer, decoded, ids, wanted), len(ids) - 1]
    with pytest.raises(DataError, match="not part of the decoded completion"):
        step_end_tokens(tokenizer, [{"role": "assistant", "content": "zz"}], ids, [1])


def said(*contents: str) -> list[dict[str, Any]]:
    return [{"role": "assistant", "content": content} for content in contents]


def test_an_answer_is_not_found_in_what_came_before_it(tokenizer: PreTrainedTokenizerFast) -> None:
    decoded = "aa <call>bb 8. 12 8</call>8. 12 8"
    ids = as_written(tokenizer, decoded, random.Random(0))
    found = step_end_tokens(tokenizer, said("aa ", "8. 12 8"), ids, [3, 6, 11])
    assert found == [*oracle(tokenizer, decoded, ids, [3, decoded.rindex("8. ") + 2]), len(ids) - 1]


@pytest.mark.parametrize(
    ("decoded", "contents", "ends", "places"),
    [
        ("a\nb", ["", "a\nb"], [1, 3], [1, 2]),  # nothing before it: the first token
        ("<call>12</call>a\nb", ["", "a\nb"], [1, 3], [15, 17]),  # what precedes the next message
        ("aa<call>12</call>", ["aa", ""], [1], [1]),
        ("<call>12</call>aa", ["", "", "aa"], [1, 2, 3], [15, 15, 16]),
    ],
)
def test_steps_of_messages_without_text(
    tokenizer: PreTrainedTokenizerFast,
    decoded: str,
    contents: list[str],
    ends: list[int],
    places: list[int],
) -> None:
    ids = as_written(tokenizer, decoded, random.Random(0))
    assert step_end_tokens(tokenizer, said(*contents), ids, ends) == oracle(
        tokenizer, decoded, ids, places
    )


@pytest.mark.parametrize(("by", "steps"), CUTS)
def test_the_tokens_of_a_step_are_its_text(words: Any, by: str, steps: list[str]) -> None:
    """But for indentation: some vocabularies have it in one token with newlines before it."""
    text = "".join(steps)
    ids = words(text, add_special_tokens=False)["input_ids"]
    ends, last = found_steps(words, text, ids, by)
    assert [text[start:end] for start, end in zip([0, *ends], ends, strict=False)] == steps
    tokens = [ids[start + 1 : end + 1] for start, end in zip([-1, *last], last, strict=False)]
    assert [words.decode(of_step).strip(" ") for of_step in tokens] == [
        step.strip(" ") for step in steps
    ]
    assert any(len(words.decode([token]).strip()) > 2 for token in ids)  # words are tokens


def test_offsets_without_white_space_are_not_where_tokens_begin() -> None:
    gpt2 = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    trimmed = byte_level(gpt2, ["1 and 2 more"], 300, trim=True)
    ids = trimmed("1 and 2 more")["input_ids"]
    assert [trimmed.decode(token) for token in ids] == ["1", " and", " 2", " more"]
    assert step_end_tokens(trimmed, "1 and 2 more", ids, [2, 6, 12]) == [1, 2, 3]


def test_what_is_not_among_the_tokens_has_no_steps(tokenizer: PreTrainedTokenizerFast) -> None:
    ids = tokenizer("12\n24", add_special_tokens=False)["input_ids"]
    ends, tokens = found_steps(tokenizer, said("12\n24"), ids, "lines")
    assert ends == [3, 5] and tokens == step_end_tokens(tokenizer, "12\n24", ids, [3, 5])
    for completion, written in [("12\nab", ids), ("12", ids[:0]), ("", ids[:0]), (said(), ids)]:
        assert found_steps(tokenizer, completion, written, "lines") == ([], [])


@pytest.mark.parametrize(
    ("text", "by", "steps"),
    [
        ("a\n\nb\nc", "lines", ["a\n\n", "b\n", "c"]),
        ("\n\na\n", "lines", ["\n\na\n"]),
        ("a\n \n b", "lines", ["a\n \n", " b"]),
        ("a\nb\n \nc\n\n", "blank_lines", ["a\nb\n \n", "c\n\n"]),
        ("a\r\n\r\n b\nc", "blank_lines", ["a\r\n\r\n", " b\nc"]),
        ("So 1.5 + 2 = 3.5. Then? Yes! ", "sentences", ["So 1.5 + 2 = 3.5.", " Then?", " Yes! "]),
        ("It is 2 \n\n b.\n \nc", "sentences", ["It is 2 \n\n", " b.\n \n", "c"]),
        ("一。二！”三（四。）五", "sentences", ["一。", "二！”", "三（四。）", "五"]),
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
    [
        ([3], [1.0, 2.0]),
        ([0], [1.0]),
        ([3, 3], [1.0, 1.0]),
        ([5, 3], [1.0, 1.0]),
        ([3], [float("inf")]),
    ],
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


def test_the_guide_s_step_reward_pays_for_its_lines() -> None:
    guide = (ROOT / "docs" / "rewards.md").read_text(encoding="utf-8")
    (block,) = (
        code for code in re.findall(r"```python\n(.*?)```", guide, re.DOTALL) if "def sums(" in code
    )
    defined: dict[str, Any] = {}
    exec(block, defined)
    texts = ["1 + 1 = 2\n\n2 + 2 = 5\n", "1 + 1 = 2\u2028\nno\r1 + 2 = 3\x0c\n 1 + 2 = 3", ""]
    for completions in (texts, [said(text) for text in texts]):
        first, odd, empty = defined["sums"](completions, answer=texts)
        assert first == StepRewards([11, 21], [1.0, 0.0])
        assert odd.rewards == (1.0, 0.0, 1.0) and odd.ends == (11, 25, 35)
        assert empty == StepRewards([], [])
