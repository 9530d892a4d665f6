"""Options of all rewards of the library: what is wrong is named before a model loads."""

import math
import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from grpo_hf.errors import RewardSpecError
from grpo_hf.rewards import _options
from grpo_hf.scoring.registry import installed_rewards, load_reward
from grpo_hf.scoring.scored_reward import ScoredReward

LIBRARY = [reward for reward in installed_rewards() if reward.source.startswith("grpo-hf ")]
# What the rewards need that have no default for it.
NEEDED: dict[str, dict[str, Any]] = {
    "embedding_similarity": {"model": "org/encoder"},
    "judge": {"base_url": "http://localhost:8000/v1", "model": "judge", "rubric": "rubric.md"},
    "reward_model": {"model": "org/reward-model"},
}
WRONG = {
    "text": "so-so",
    "number as text": "5",
    "empty text": "",
    "none": None,
    "negative": -3,
    "zero": 0,
    "fraction": 2.5,
    "infinite": math.inf,
    "nan": math.nan,
    "flag": True,
    "list": [1, 2],
    "dictionary": {"a": 1},
    "huge": 10**400,
}
# The values of `WRONG` that an option takes, for all options that take any of them.
TAKEN = {
    ("judge", "base_url"): set(),
    ("judge", "model"): {"text", "number as text"},
    ("judge", "rubric"): set(),
    ("judge", "lowest"): {"negative", "zero", "fraction"},
    ("judge", "highest"): {"fraction"},
    ("judge", "temperature"): {"none", "zero", "fraction"},
    ("judge", "max_tokens"): {"none", "huge"},
    ("judge", "extra_body"): {"none", "dictionary"},
    ("judge", "timeout"): {"fraction"},
    ("judge", "request_timeout"): {"fraction"},
    ("judge", "retries"): {"zero", "huge"},
    ("judge", "cache"): {"none", "text", "number as text"},
    ("judge", "price_in"): {"zero", "fraction"},
    ("judge", "price_out"): {"zero", "fraction"},
    ("judge", "api_key_env"): set(),
    ("countdown", "format_reward"): {"zero", "fraction"},
    ("embedding_similarity", "model"): {"text", "number as text"},
    ("embedding_similarity", "batch_size"): {"huge"},
    ("embedding_similarity", "max_length"): {"huge"},
    ("overlong", "max_length"): {"huge"},
    ("python_tests", "timeout"): {"fraction"},
    ("python_tests", "partial"): {"flag"},
    ("python_tests", "memory_mb"): {"fraction"},
    ("repetition", "n"): {"huge"},
    ("repetition", "max_penalty"): {"zero", "fraction"},
    ("reward_model", "model"): {"text", "number as text"},
    ("reward_model", "batch_size"): {"huge"},
    ("reward_model", "max_length"): {"huge"},
    ("reward_model", "device"): {"none"},
    ("reward_model", "center"): {"negative", "zero", "fraction"},
    ("reward_model", "scale"): {"negative", "fraction"},
    ("rust_cargo", "timeout"): {"fraction"},
    ("rust_cargo", "test_timeout"): set(),
    ("think_format", "answer_tags"): {"flag"},
    ("think_format", "opened"): {"flag"},
}
CASES = [(reward.name, option) for reward in LIBRARY for option in reward.options]


@pytest.mark.parametrize(("name", "option"), CASES)
def test_every_wrong_option_is_named_with_what_came(
    name: str, option: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    if name == "language":
        pytest.importorskip("py3langid")
    monkeypatch.chdir(tmp_path)
    Path("rubric.md").write_text("{completion}")
    taken = set()
    for kind, value in WRONG.items():
        reward = load_reward({name: NEEDED.get(name, {}) | {option: value}})
        try:
            ScoredReward(reward)
            taken.add(kind)
        except RewardSpecError as error:
            message = str(error)
            assert name in message and option in message
            assert re.search("expected|must|Name a", message), message
            # Whoever calls the function without a run gets the same.
            with pytest.raises(RewardSpecError, match=re.escape(message)):
                call_with_nothing(reward)
    assert taken == TAKEN.get((name, option), set())


def call_with_nothing(reward: Any) -> None:
    columns = {column: [] for column in reward.columns} | {"prompts": [], "completion_ids": []}
    result = reward(completions=[], **columns)
    if reward.is_async:
        result.send(None)


@pytest.mark.parametrize("name", [reward.name for reward in LIBRARY if "timeout" in reward.options])
@pytest.mark.parametrize("timeout", [0.5, 5, 60, 300, 3000])
def test_a_timeout_reaches_the_limit_of_the_run(name: str, timeout: float):
    reward = load_reward({name: {"timeout": timeout}})
    assert reward.options == {"timeout": timeout}
    limits = {reward.time_limit(run_timeout) for run_timeout in (1, 10, 1000)}
    [limit] = limits
    assert timeout + 5 <= limit <= timeout + 150
    # The distance is the same for every value.
    assert limit - timeout == load_reward({name: {"timeout": 1}}).time_limit(10) - 1


@pytest.mark.parametrize(
    "name", [reward.name for reward in LIBRARY if "timeout" not in reward.options]
)
def test_a_timeout_beside_any_other_reward_is_the_run_s_limit(name: str):
    assert load_reward({name: {"timeout": 77}}).time_limit(10) == 77


def test_numbers_of_other_libraries_are_numbers():
    import numpy as np

    _options.check_whole("r", "n", np.int64(3))
    _options.check_number("r", "x", np.float32(0.5), least=0, most=1)


@pytest.mark.parametrize("name", [reward.name for reward in LIBRARY])
def test_a_reward_that_calls_a_blank_text_no_answer_cannot_judge_by_one(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    if name == "rust_cargo" and shutil.which("cargo") is None:
        pytest.skip("cargo is not installed")
    monkeypatch.chdir(tmp_path)
    Path("rubric.md").write_text("{completion}")
    reward = load_reward({name: NEEDED.get(name, {})})
    # Their columns hold what is right, so each of them has to say so.
    assert (reward.settings.gold is not None) == (len(reward.columns) > 0)
    if reward.settings.gold is None:
        return
    columns = {column: [[1, 2]] * 2 for column in reward.columns}
    columns[reward.settings.gold] = ["", " \n"]
    given = {"completions": ["", "so"], "prompts": ["?"] * 2, "completion_ids": [[], [1]]}
    assert reward(**given, **columns) == [None, None]
