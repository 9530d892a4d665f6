"""Tests of token credit: the text and the advantage of every token."""

import json
import random
from dataclasses import asdict
from typing import Any

import pytest
import torch
from support.credit import HOSTILE, MULTILINGUAL, batch_of, completion
from tokenizers import Tokenizer, decoders, models
from tokenizers.pre_tokenizers import ByteLevel

from grpo_hf.demo.tiny_model import tiny_tokenizer
from grpo_hf.reporting.credit_display import to_html
from grpo_hf.reporting.token_credit import Group, Score, credited_group, token_texts


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return tiny_tokenizer()


def scores(*totals: float | None) -> list[Score]:
    return [Score(total, {"only": total}, {}) for total in totals]


def sentencepiece_like() -> Tokenizer:
    """Return a tokenizer like Llama 2's.

    It has ▁ for a space, bytes for what is no word, and drops a space at the start of a text.
    """
    pieces = ["▁", "▁so", "▁a", "a", "b", *(f"<0x{byte:02X}>" for byte in range(256))]
    tokenizer = Tokenizer(
        models.BPE({piece: i for i, piece in enumerate(pieces)}, [], byte_fallback=True)
    )
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    return tokenizer


class TestTexts:
    @pytest.mark.parametrize("seed", range(3))
    def test_random_tokens_make_the_decoded_text(self, tokenizer: Any, seed: int):
        """Check random ids, most of which are parts of characters or no characters at all."""
        chance, other = random.Random(seed), sentencepiece_like()
        for length in (0, 1, 2, 15, 16, 17, 60, 200):
            ids = [chance.randrange(len(tokenizer)) for _ in range(length)]
            texts = token_texts(tokenizer.decode, ids)
            assert len(texts) == length and "".join(texts) == tokenizer.decode(ids)
            ids = [chance.randrange(other.get_vocab_size()) for _ in range(length)]
            assert "".join(token_texts(other.decode, ids)) == other.decode(ids)

    def test_a_character_belongs_to_the_token_that_completes_it(self, tokenizer: Any):
        """Compare with the bytes: after each token, some characters are complete."""
        ids = tokenizer(MULTILINGUAL * 5)["input_ids"]
        # Printable bytes stand for themselves, the others follow from 256 on.
        letters = set(ByteLevel.alphabet())
        others = [byte for byte in range(256) if chr(byte) not in letters]
        byte_of = {chr(byte): byte for byte in range(256)}
        for n, byte in enumerate(others):
            byte_of[chr(256 + n)] = byte
        data = b""
        expected = []
        for token in tokenizer.convert_ids_to_tokens(ids):
            before = data.decode("utf-8", "ignore")
            data += bytes(byte_of[letter] for letter in token)
            expected.append(data.decode("utf-8", "ignore")[len(before) :])
        assert "" in expected and "日" in expected
        assert token_texts(tokenizer.decode, ids) == expected

    def test_a_space_that_the_decoder_drops_at_the_start_is_there_later(self):
        decode = sentencepiece_like().decode
        assert token_texts(decode, [1, 2, 3, 4] * 10)[:5] == ["so", " a", "a", "b", " so"]
        assert token_texts(decode, [1, 2, 3, 4] * 10)[4:] == [" so", " a", "a", "b"] * 9

    def test_the_work_grows_with_the_length_alone(self, tokenizer: Any):
        def decoded(ids: list[int]) -> int:
            work = []
            token_texts(lambda part: [work.append(len(part)), tokenizer.decode(part)][1], ids)
            return sum(work)

        ids = tokenizer(MULTILINGUAL * 40)["input_ids"]
        assert len(ids) > 1500 and decoded(ids) < 15 * len(ids)


class TestGroups:
    TEXTS = ("a 1", "b", "c 2", "d")

    def group(self, tokenizer: Any, advantages: Any, **changes: Any) -> Group:
        batch = batch_of(tokenizer, list(self.TEXTS), advantages) | changes
        return credited_group(
            batch, scores(1.0, 0.0, None, 0.5), step=7, size=2, tokenizer=tokenizer
        )

    def test_outcome_supervision_gives_every_token_the_advantage_of_its_completion(
        self, tokenizer: Any
    ):
        group = self.group(tokenizer, [0.5, -0.5, 0.25, -0.25])
        assert (group.step, group.prompt, group.scale) == (7, "1 + 1 =", 0.5)
        assert ["".join(one.tokens) for one in group.completions] == ["a 1<|end|>", "b<|end|>"]
        assert [set(one.advantages) for one in group.completions] == [{0.5}, {-0.5}]
        assert [one.special for one in group.completions] == [
            [len(one.tokens) - 1] for one in group.completions
        ]
        assert [one.reward for one in group.completions] == [1.0, 0.0]

    def test_a_group_without_a_signal_is_passed_over(self, tokenizer: Any):
        group = self.group(tokenizer, [0.0, 0.0, 0.25, -0.25])
        assert group.prompt == "2 + 2 =" and [one.reward for one in group.completions] == [
            None,
            0.5,
        ]
        assert self.group(tokenizer, [0.0] * 4).prompt == "1 + 1 ="

    def test_process_supervision_gives_every_token_its_own(self, tokenizer: Any):
        batch = batch_of(tokenizer, list(self.TEXTS), [0.0] * 4)
        shape = batch["completion_ids"].shape
        own = torch.arange(shape.numel()).view(shape) / 8 - 1
        group = self.group(tokenizer, own)
        for row, one in enumerate(group.completions):
            assert one.advantages == own[row, : len(one.tokens)].tolist()

    def test_what_the_loss_leaves_out_has_none(self, tokenizer: Any):
        """Check a tool's answer, which `tool_mask` masks, and a truncated completion.

        TRL masks the latter in `completion_mask`.
        """
        mask = batch_of(tokenizer, list(self.TEXTS), [0.0] * 4)["completion_mask"]
        answer = torch.ones_like(mask)
        answer[0, 1] = mask[1] = 0
        first, second = self.group(
            tokenizer, [0.5, -0.5, 0.0, 0.0], tool_mask=answer, completion_mask=mask
        ).completions
        assert first.advantages == [0.5, 0.0, *[0.5] * (len(first.tokens) - 2)]
        assert second.tokens == second.advantages == []
        assert "left out of the loss" in to_html([Group(1, "", [second])])

    def test_large_groups_are_cut_and_torn_ones_taken_as_they_are(self, tokenizer: Any):
        batch = batch_of(tokenizer, ["a"] * 20, [0.5] * 20)
        group = credited_group(batch, scores(*[0.0] * 20), step=1, size=10, tokenizer=tokenizer)
        assert (len(group.completions), group.size, group.groups) == (8, 10, 2)
        batch = batch_of(tokenizer, ["a", "b"], [0.5, 0.5])
        group = credited_group(batch, scores(*[0.0] * 16), step=1, size=8, tokenizer=tokenizer)
        assert (len(group.completions), group.size, group.groups) == (2, 8, 2)

    def test_a_line_of_the_file_is_the_group_again(self):
        group = Group(5, MULTILINGUAL, [completion(HOSTILE, [0.5] * len(HOSTILE))])
        assert Group.of(json.loads(json.dumps(asdict(group)))) == group
