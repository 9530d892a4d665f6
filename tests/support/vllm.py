"""Stands for vLLM where it is not installed: its engine in this process, and its server.

Both sample from transformers' models and PEFT's adapters, read from the files that vLLM would read,
so what they return is what vLLM should.
"""

import copy
import json
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, ClassVar
from unittest.mock import patch

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM
from trl.generation import vllm_generation

LOADING = threading.Lock()


@torch.no_grad()
def sample(
    model: Any,
    prompt: list[int],
    *,
    max_tokens: int,
    temperature: float,
    ends: int | None,
    processed: bool = True,
) -> tuple[list[int], list[float], list[float]]:
    """Tokens of one completion, their log-probabilities, and those of the likeliest tokens.

    Log-probabilities are those after the temperature, or before it where not `processed`.
    """
    tokens: list[int] = []
    log_probs: list[float] = []
    highest: list[float] = []
    while len(tokens) < max_tokens and (not tokens or tokens[-1] != ends):
        logits = model(input_ids=torch.tensor([prompt + tokens])).logits[0, -1].float()
        scores = (logits / (temperature or 1.0)).log_softmax(-1)
        chosen = scores.argmax() if temperature == 0 else scores.exp().multinomial(1)[0]
        tokens.append(int(chosen))
        if not processed:
            scores = logits.log_softmax(-1)
        log_probs.append(float(scores[chosen]))
        highest.append(float(scores.max()))
    return tokens, log_probs, highest


class Models:
    """A base from a folder, and adapters on copies of it, from others."""

    def __init__(self, base: str) -> None:
        self.base = AutoModelForCausalLM.from_pretrained(base).eval()

    def adapted(self, folder: str) -> Any:
        # transformers and PEFT make models in a state that all threads share.
        with LOADING:
            return PeftModel.from_pretrained(copy.deepcopy(self.base), folder).eval()


class ValidationError(Exception):
    """vLLM 0.32's, which is no ValueError."""

    __module__ = "vllm.exceptions"


class FakeSamplingParams(SimpleNamespace):
    """vLLM's `SamplingParams`, which refuses names of transformers', and none of TRL's."""

    def __init__(self, **settings: Any) -> None:
        if "stop_strings" in settings:
            raise TypeError("Unexpected keyword argument 'stop_strings'")
        super().__init__(**settings)


class FakeLLM:
    """vLLM's `LLM`; `calls` are the methods that were called, with what matters of them."""

    started: ClassVar[list["FakeLLM"]] = []

    def __init__(self, model: str, **settings: Any) -> None:
        self.settings = settings
        self.calls: list[Any] = []
        self.models = Models(model)
        self.adapters: dict[int, Any] = {}
        core = SimpleNamespace(shutdown=lambda: self.calls.append("shutdown"))
        limits = SimpleNamespace(max_model_len=settings.get("max_model_len") or 256)
        self.llm_engine = SimpleNamespace(
            add_lora=self.add_lora, engine_core=core, model_config=limits
        )
        FakeLLM.started.append(self)

    def add_lora(self, request: Any) -> None:
        self.calls.append(("load", Path(request.lora_path).name, request.load_inplace))
        self.adapters[request.lora_int_id] = self.models.adapted(request.lora_path)

    def reset_prefix_cache(self) -> None:
        self.calls.append("reset")

    def sleep(self, level: int) -> None:
        self.calls.append(("sleep", level))

    def wake_up(self, tags: list[str]) -> None:
        self.calls.append(("wake", *tags))

    def generate(
        self, prompts: Any, sampling_params: Any, use_tqdm: bool, lora_request: Any = None
    ) -> list[Any]:
        model = self.models.base
        if lora_request is not None:
            assert not lora_request.load_inplace, "vLLM would read the files at every token"
            model = self.adapters[lora_request.lora_int_id]
        self.calls.append("generate")
        outputs = []
        for prompt in prompts:
            ids = prompt["prompt_token_ids"]
            if len(ids) >= self.llm_engine.model_config.max_model_len:
                raise ValidationError(f"a prompt of {len(ids)} tokens is too long")
            if getattr(sampling_params, "seed", None) is not None:
                torch.manual_seed(sampling_params.seed)
            completions = []
            for _ in range(getattr(sampling_params, "n", 1)):
                tokens, log_probs, _ = sample(
                    model,
                    ids,
                    max_tokens=sampling_params.max_tokens,
                    temperature=sampling_params.temperature,
                    ends=1,
                )
                listed = []
                for token, value in zip(tokens, log_probs, strict=True):
                    listed.append({token: SimpleNamespace(logprob=value, rank=1)})
                completions.append(SimpleNamespace(token_ids=tokens, logprobs=listed))
            outputs.append(SimpleNamespace(prompt_token_ids=ids, outputs=completions))
        return outputs


@dataclass
class LoRARequest:
    lora_name: str
    lora_int_id: int
    lora_path: str
    load_inplace: bool = False


@contextmanager
def vllm_installed() -> Iterator[type[FakeLLM]]:
    """Let this process find a vLLM for a block."""
    package, lora, request = (ModuleType(name) for name in ("vllm", "lora", "request"))
    package.__spec__ = ModuleSpec("vllm", None)
    package.LLM, package.SamplingParams = FakeLLM, FakeSamplingParams
    request.LoRARequest = LoRARequest
    modules = {"vllm": package, "vllm.lora": lora, "vllm.lora.request": request}
    FakeLLM.started = []
    with (
        patch.dict(sys.modules, modules),
        patch.dict("os.environ"),
        patch.multiple(
            vllm_generation,
            create=True,
            LLM=FakeLLM,
            SamplingParams=FakeSamplingParams,
            is_vllm_available=lambda *_: True,
        ),
    ):
        yield FakeLLM


@dataclass
class FakeServer:
    """`vllm serve` on a free port; `requests` are the paths and bodies that came."""

    base: str
    updates: bool = True
    processed: bool = True
    # Answers that are given in the place of the next ones to a path.
    failures: dict[str, list[tuple[int, str]]] = field(default_factory=dict)
    requests: list[tuple[str, Any]] = field(default_factory=list)
    adapters: dict[str, Any] = field(default_factory=dict)
    port: int = 0
    # Called before a request is answered.
    before: Any = None

    def __enter__(self) -> "FakeServer":
        self.models = Models(self.base)
        self._start()
        return self

    def _start(self) -> None:
        owner = self

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *_: Any) -> None:
                """Say nothing."""

            def do_GET(self) -> None:
                owner.answer(self, None)

            def do_POST(self) -> None:
                size = int(self.headers["Content-Length"])
                owner.answer(self, json.loads(self.rfile.read(size)))

        self._http = ThreadingHTTPServer(("127.0.0.1", self.port), Handler)
        self.port = self._http.server_port
        threading.Thread(target=self._http.serve_forever, args=(0.01,), daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def __exit__(self, *_: Any) -> None:
        self._http.shutdown()
        self._http.server_close()

    def start_again(self) -> None:
        """Be another process on the same port, which has no adapters."""
        self.adapters = {}
        self._start()

    def paths(self) -> list[str]:
        return [path for path, _ in self.requests]

    def answer(self, handler: BaseHTTPRequestHandler, body: Any) -> None:
        path = handler.path
        self.requests.append((path, body))
        if self.before is not None:
            self.before(path)
        if waiting := self.failures.get(path):
            code, text = waiting.pop(0)
        else:
            code, text = self.reply(path, body)
        if code == 0:
            # As a process that is killed: the connection ends without an answer.
            handler.connection.close()
            return
        data = text.encode()
        handler.send_response(code)
        handler.send_header("Content-Length", str(len(data)))
        handler.end_headers()
        handler.wfile.write(data)

    def reply(self, path: str, body: Any) -> tuple[int, str]:
        if path == "/health":
            return 200, ""
        if path == "/v1/models":
            return 200, json.dumps({"data": [{"id": self.base}]})
        if path == "/v1/load_lora_adapter" and self.updates:
            return self._load(body)
        if path == "/v1/unload_lora_adapter" and self.updates:
            self.adapters.pop(body["lora_name"], None)
            return 200, "Success"
        if path == "/v1/completions":
            return self._complete(body)
        return 404, "Not Found"

    def _load(self, body: Any) -> tuple[int, str]:
        if body is None:
            return 405, "Method Not Allowed"
        folder = Path(body["lora_path"])
        if not folder.is_dir():
            return 404, f"No adapter found for {folder}"
        if body["lora_name"] in self.adapters:
            return 400, "it has already been loaded"
        self.adapters[body["lora_name"]] = self.models.adapted(str(folder))
        return 200, "Success"

    def _complete(self, body: Any) -> tuple[int, str]:
        model = self.models.base if body["model"] == self.base else None
        model = model or self.adapters.get(body["model"])
        if model is None:
            return 404, f"The model {body['model']} does not exist."
        choices = []
        for prompt in body["prompt"]:
            for _ in range(body.get("n", 1)):
                tokens, log_probs, highest = sample(
                    model,
                    prompt,
                    max_tokens=body["max_tokens"],
                    temperature=body["temperature"],
                    ends=1,
                    processed=self.processed,
                )
                tops = [{"top": value} for value in highest]
                listed = {"token_logprobs": log_probs, "top_logprobs": tops}
                choices.append({"token_ids": tokens, "logprobs": listed})
        return 200, json.dumps({"choices": choices})
