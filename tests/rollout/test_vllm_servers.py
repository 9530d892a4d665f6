"""Several servers that are asked as one, over HTTP."""

import json
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from support.vllm import FakeServer
from transformers import AutoModelForCausalLM

from grpo_hf.errors import ConfigError, EngineError
from grpo_hf.rollout import vllm_servers
from grpo_hf.rollout.vllm_adapter import AdapterFolder, name_of_run
from grpo_hf.rollout.vllm_servers import Servers

LOAD, ASK = "/v1/load_lora_adapter", "/v1/completions"
GREEDY = {"n": 1, "temperature": 0.0, "max_tokens": 5, "logprobs": 0}


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vllm_servers, "_RETRY", 0.01)


@pytest.fixture
def servers(tiny_checkpoint: Path) -> Iterator[list[FakeServer]]:
    with ExitStack() as stack:
        yield [stack.enter_context(FakeServer(str(tiny_checkpoint))) for _ in range(3)]


@pytest.fixture
def policy(tiny_checkpoint: Path) -> Any:
    """The embedded model with an adapter that changes it."""
    torch.manual_seed(0)
    base = AutoModelForCausalLM.from_pretrained(tiny_checkpoint)
    config = LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False)
    return get_peft_model(base, config).eval()


def client(servers: list[FakeServer], patience: float = 0.3) -> Servers:
    made = Servers([each.url for each in servers], patience=patience, command="vllm serve BASE")
    made.wait()
    return made


def greedy(policy: Any, prompt: list[int]) -> list[int]:
    output = policy.generate(torch.tensor([prompt]), max_new_tokens=5, do_sample=False)
    return output[0, len(prompt) :].tolist()


@pytest.mark.long
def test_prompts_are_dealt_and_come_back_in_order(
    servers: list[FakeServer], policy: Any, tmp_path: Path
) -> None:
    asked = client(servers)
    name, folder = AdapterFolder(tmp_path, "run").write(policy, writes=True)
    asked.load(name, folder)
    prompts = [[5, 6, number] for number in range(20, 27)]
    answer = asked.generate(prompts, **GREEDY | {"n": 2})
    expected = [greedy(policy, prompt) for prompt in prompts for _ in range(2)]
    assert answer["completion_ids"] == expected
    assert answer["prompt_ids"] == prompts
    assert [len(row) for row in answer["logprobs"]] == [len(row) for row in expected]
    assert answer["logprob_token_ids"][3] == [[token] for token in expected[3]]
    dealt = [body["prompt"] for each in servers for path, body in each.requests if path == ASK]
    assert dealt == [prompts[0::3], prompts[1::3], prompts[2::3]]


def test_fewer_prompts_than_servers(servers: list[FakeServer]) -> None:
    asked = client(servers)
    assert len(asked.generate([[5]], **GREEDY)["completion_ids"]) == 1
    assert ASK not in servers[1].paths()


@pytest.mark.long
def test_a_new_version_takes_the_place_of_the_one_before(
    servers: list[FakeServer], policy: Any, tmp_path: Path
) -> None:
    asked = client(servers)
    versions = AdapterFolder(tmp_path, name_of_run())
    seen = []
    for _ in range(2):
        for weight in policy.parameters():
            if weight.requires_grad:
                weight.data += 0.1 * torch.randn_like(weight)
        name, folder = versions.write(policy, writes=True)
        asked.load(name, folder)
        tokens = asked.generate([[7, 8, 9]], **GREEDY)["completion_ids"][0]
        assert tokens == greedy(policy, [7, 8, 9])
        seen.append(name)
        assert [list(each.adapters) for each in servers] == [[name]] * 3
    asked.unload()
    assert [list(each.adapters) for each in servers] == [[]] * 3
    assert seen[0] != seen[1]


def test_two_trainers_at_one_server(servers: list[FakeServer], policy: Any, tmp_path: Path) -> None:
    first, second = client(servers[:1]), client(servers[:1])
    for asked in (first, second):
        asked.load(*AdapterFolder(tmp_path, name_of_run()).write(policy, writes=True))
    assert len(servers[0].adapters) == 2
    second.unload()
    assert first.generate([[7]], **GREEDY)["completion_ids"] == [greedy(policy, [7])]


def test_an_error_of_the_server_s_is_asked_again(servers: list[FakeServer]) -> None:
    asked = client(servers[:1])
    servers[0].failures[ASK] = [(500, "out of blocks"), (503, "busy"), (0, "")]
    assert len(asked.generate([[5]], **GREEDY)["completion_ids"]) == 1
    assert servers[0].paths().count(ASK) == 4


def test_a_server_that_goes_on_failing_is_named(servers: list[FakeServer]) -> None:
    asked = client(servers)
    servers[1].failures[ASK] = [(500, "CUDA error")] * 9
    with pytest.raises(EngineError, match="CUDA error") as caught:
        asked.generate([[5], [6], [7]], **GREEDY)
    assert servers[1].url in str(caught.value)
    assert servers[1].paths().count(ASK) == 4


def test_what_a_server_refuses_is_not_asked_again(servers: list[FakeServer]) -> None:
    asked = client(servers[:1])
    servers[0].failures[ASK] = [(400, "maximum context length is 128 tokens")]
    with pytest.raises(EngineError, match="maximum context length"):
        asked.generate([[5]], **GREEDY)
    assert servers[0].paths().count(ASK) == 1


def test_a_dead_server_is_named_with_what_to_do(servers: list[FakeServer]) -> None:
    asked = client(servers)
    servers[2].__exit__()
    with pytest.raises(EngineError, match="resume_from_checkpoint") as caught:
        asked.generate([[5], [6], [7]], **GREEDY)
    assert f"{servers[2].url} does not answer" in str(caught.value)
    assert "vllm serve BASE" in str(caught.value)
    servers[2].start_again()


def test_a_server_that_was_started_again_gets_the_adapter_again(
    servers: list[FakeServer], policy: Any, tmp_path: Path
) -> None:
    asked = client(servers[:1])
    asked.load(*AdapterFolder(tmp_path, "run").write(policy, writes=True))
    servers[0].__exit__()
    servers[0].start_again()
    assert asked.generate([[7]], **GREEDY)["completion_ids"] == [greedy(policy, [7])]


@pytest.mark.parametrize("settings", [{"updates": False}, None], ids=["stock", "none"])
def test_servers_that_cannot_take_adapters(tiny_checkpoint: Path, settings: Any) -> None:
    with FakeServer(str(tiny_checkpoint), **(settings or {})) as server:
        url = server.url if settings else "http://127.0.0.1:9"
        with pytest.raises(EngineError, match="vllm serve BASE") as caught:
            Servers([url], patience=0.1, command="vllm serve BASE").wait()
        assert url in str(caught.value)


def test_a_folder_that_a_server_does_not_see(servers: list[FakeServer]) -> None:
    asked = client(servers[:1])
    with pytest.raises(EngineError, match="--vllm_adapter_dir"):
        asked.load("run-1", Path("/nowhere/run-1"))


def test_one_that_is_away_is_said_at_once(
    servers: list[FakeServer], caplog: pytest.LogCaptureFixture
) -> None:
    asked = client(servers[:1], patience=30)
    servers[0].__exit__()
    back = threading.Timer(0.3, servers[0].start_again)
    back.start()
    assert len(asked.generate([[5]], **GREEDY)["completion_ids"]) == 1
    back.join()
    (said,) = caplog.messages
    assert f"{servers[0].url} does not answer" in said and "30 s at most" in said


def test_nobody_is_waited_for_only_where_that_is_asked(servers: list[FakeServer]) -> None:
    urls = [servers[0].url, "http://127.0.0.1:9"]
    asked = Servers(urls, patience=240, command="vllm serve BASE", waits=False)
    with pytest.raises(EngineError, match="waited for with --vllm_server_timeout") as caught:
        asked.wait()
    assert urls[1] in str(caught.value)


def test_servers_of_trl_s_way_need_no_adapters(tiny_checkpoint: Path) -> None:
    with FakeServer(str(tiny_checkpoint), updates=False) as server:
        Servers([server.url], patience=0.1, command="").wait(with_adapters=False)


def test_images_are_refused(servers: list[FakeServer]) -> None:
    with pytest.raises(ConfigError, match="images"):
        client(servers[:1]).generate([[5]], [{"mm": 1}], **GREEDY)


@pytest.mark.parametrize("processed", [True, False])
def test_whether_log_probs_are_those_after_the_temperature(
    tiny_checkpoint: Path, processed: bool
) -> None:
    with FakeServer(str(tiny_checkpoint), processed=processed) as server:
        mode = client([server]).get_server_info()["model_config"]["logprobs_mode"]
    assert mode == ("processed_logprobs" if processed else "raw_logprobs")


def test_what_trl_asks_for_is_asked(servers: list[FakeServer]) -> None:
    more = {"top_k": 5, "structured_outputs_regex": "a+", "generation_kwargs": {"seed": 3}}
    client(servers[:1]).generate([[5]], **GREEDY | more)
    body = servers[0].requests[-1][1]
    assert body["structured_outputs"] == {"regex": "a+"}
    assert (body["seed"], body["top_k"], body["return_token_ids"]) == (3, 5, True)
    assert "generation_kwargs" not in body


def test_numbers_that_are_none() -> None:
    choice = {"logprobs": {"token_logprobs": [-0.5, None, json.loads("NaN")]}}
    assert vllm_servers._log_probs(choice) == [[-0.5], [None], [None]]
