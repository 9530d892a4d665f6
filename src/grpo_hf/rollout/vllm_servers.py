"""Servers of vLLM over HTTP: stock `vllm serve`, one or several, that hold the same base.

A prompt goes to one of them, all get the adapter. A server that fails is asked again; one that is
away is waited for, and given the adapter again. What does not come back is an error with its name.
The requests are those of OpenAI's completions, and vLLM's own for adapters (vLLM 0.32).
"""

import json
import logging
import math
import os
import socket
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPException
from pathlib import Path
from typing import Any

from ..errors import ConfigError, EngineError
from .vllm_adapter import AdapterSampler

logger = logging.getLogger(__name__)

_TRIES = 4  # of a request that a server answers with an error of its own
_SLOWEST = 3600  # seconds for an answer; a server that hangs holds up the run no longer
_RETRY = 0.5  # seconds before the second try, then twice as long each time
_SERVER_ERRORS = range(500, 600)
_ROUNDING = 1e-4  # nats
_LOAD = "/v1/load_lora_adapter"


class Servers(AdapterSampler):
    """One or several servers, with the methods by which TRL 1.16 asks its client of one."""

    def __init__(
        self, urls: Sequence[str], *, patience: float, command: str, waits: bool = True
    ) -> None:
        """Prepare; nobody is asked yet.

        Args:
            urls: of the servers, as in `http://localhost:8000`.
            patience: how many seconds a server may be away.
            command: starts such a server; for messages.
            waits: whether a server is waited for at whose address nobody is.
        """
        self.urls = [url.rstrip("/") for url in urls]
        self._patience = patience
        self._command = command
        self._waits = waits
        self._base = ""
        # What is sampled from: the base, until an adapter is loaded.
        self._adapter: tuple[str, Path] | None = None
        # Whether log-probabilities are those after the temperature; None: nobody has asked.
        self._processed: bool | None = None

    def wait(self, *, with_adapters: bool = True) -> None:
        """Wait until every server is up.

        Args:
            with_adapters: whether they have to be able to load adapters.

        Raises:
            EngineError: one does not answer in time, or was started otherwise.
        """
        for url in self.urls:
            self._wait_for(url)
        if not with_adapters:
            return
        for url in self.urls:
            if not self._loads_adapters(url):
                raise EngineError(
                    f"the vLLM server {url} loads no adapters while it runs. Start it as\n"
                    f"  {self._command}\nor set --vllm_sync merged, TRL's way, which needs other "
                    "options there."
                )

    def load(self, name: str, folder: Path) -> None:
        """Load a new adapter at every server, and forget the one before.

        Raises:
            EngineError: a server cannot load it.
        """
        before, self._adapter = self._adapter, (name, folder)
        self._at_all(self._load_at)
        if before is not None:
            self._at_all(lambda url: self._unload_at(url, before[0]))

    def follow(self, name: str, folder: Path) -> None:
        """Sample from an adapter that another process loads."""
        self._adapter = (name, folder)

    def unload(self) -> None:
        """Forget the adapter at every server that still answers."""
        if self._adapter is not None:
            name, self._adapter = self._adapter[0], None
            self._at_all(lambda url: self._unload_at(url, name))

    def complete(self, prompts: Sequence[list[int]], **sampling: Any) -> list[list[int]]:
        """Return the tokens of `n` completions of each prompt, those of one side by side.

        Args:
            sampling: settings of a request, `n` and `max_tokens` among them.
        """
        answer = self.generate(prompts, **{**sampling, "logprobs": 0})
        written: list[list[int]] = answer["completion_ids"]
        return written

    def generate(
        self, prompts: Sequence[list[int]], features: Any = None, **sampling: Any
    ) -> dict[str, Any]:
        """Sample `n` completions of each prompt; the prompts are dealt over the servers.

        Args:
            prompts: token ids.
            features: of images, which TRL's way alone can send.
            sampling: what TRL 1.16 asks for: `n`, `temperature` and so on, `generation_kwargs`.

        Returns:
            `prompt_ids` by prompt; `completion_ids`, `logprobs` and `logprob_token_ids` by
            completion, those of one prompt side by side, and one log-probability for each token.
        """
        if features is not None:
            raise ConfigError(
                "a server that loads adapters is sent token ids, and these prompts have images. "
                "Set --vllm_mode colocate, or --vllm_sync merged."
            )
        body = _request_body(sampling)
        count = len(self.urls)
        deals = [list(prompts[place::count]) for place in range(count)]
        pairs = [(url, deal) for url, deal in zip(self.urls, deals, strict=True) if deal]
        answers = _in_parallel(lambda pair: self._complete(pair[0], pair[1], body), pairs)
        by_prompt: list[list[Any]] = [[]] * len(prompts)
        for place, choices in enumerate(answers):
            by_prompt[place::count] = choices
        every = [choice for choices in by_prompt for choice in choices]
        return {
            "prompt_ids": list(prompts),
            "completion_ids": [choice["token_ids"] for choice in every],
            "logprobs": [_log_probs(choice) for choice in every],
            "logprob_token_ids": [[[token] for token in choice["token_ids"]] for choice in every],
        }

    def get_server_info(self) -> dict[str, Any]:
        """Return what TRL reads of a server: which log-probabilities it gives.

        A stock server does not say it, so it is measured: those after the temperature differ
        between two temperatures.
        """
        if self._processed is None:
            base = self._name_of_base()
            highest = []
            for temperature in (0.5, 2.0):
                # Several prompts: after a token that a model knows nothing of, all are as likely.
                body = {
                    "model": base,
                    "prompt": [[1], [5, 3], [2, 7, 4]],
                    "max_tokens": 1,
                }
                body |= {"temperature": temperature, "seed": 0, "logprobs": 1}
                choices = self._ask(self.urls[0], "/v1/completions", body)["choices"]
                tops = [choice["logprobs"]["top_logprobs"][0] for choice in choices]
                highest.append([max(top.values()) for top in tops])
            distances = [abs(cold - hot) for cold, hot in zip(*highest, strict=True)]
            self._processed = max(distances) > _ROUNDING
        mode = "processed_logprobs" if self._processed else "raw_logprobs"
        return {"model_config": {"logprobs_mode": mode}}

    def init_communicator(self, device: Any = None) -> None:
        """Do nothing: TRL opens a connection for weights here, and no weights are sent."""

    # Requests

    def _name_of_base(self) -> str:
        """Return under which name servers know the base; the first process alone waits for them."""
        if not self._base:
            self._base = self._ask(self.urls[0], "/v1/models")["data"][0]["id"]
        return self._base

    def _complete(
        self, url: str, prompts: list[list[int]], body: Mapping[str, Any]
    ) -> list[list[Any]]:
        """Return the completions of some prompts by one server."""

        def request() -> dict[str, Any]:
            model = self._adapter[0] if self._adapter else self._name_of_base()
            return {**body, "model": model, "prompt": prompts}

        choices = self._ask(url, "/v1/completions", request)["choices"]
        n = body["n"]
        return [choices[start : start + n] for start in range(0, len(choices), n)]

    def _load_at(self, url: str) -> None:
        if self._adapter is None:
            return
        name, folder = self._adapter
        body = {"lora_name": name, "lora_path": str(folder)}
        try:
            self._ask(url, _LOAD, body)
        except EngineError as error:
            # A server that has loaded it, and was too slow to say so, is asked twice.
            if "already been loaded" not in str(error):
                raise self._cannot_load(url, folder, error) from error

    def _unload_at(self, url: str, name: str) -> None:
        # What stays there is the oldest adapter, and the first that the server drops itself.
        try:
            self._post(url, "/v1/unload_lora_adapter", {"lora_name": name}, slowest=10)
        except (_Refused, _Away):
            logger.debug(f"{url} does not unload {name}")

    def _cannot_load(self, url: str, folder: Path, error: EngineError) -> EngineError:
        return EngineError(
            f"{error} The server has to read the adapter in {folder} under the same path "
            "(--vllm_adapter_dir names another folder), and to be started with room for it:\n"
            f"  {self._command}"
        )

    def _loads_adapters(self, url: str) -> bool:
        # The way there exists for POST alone.
        try:
            self._post(url, _LOAD)
        except _Refused as error:
            return error.code != 404
        return True

    def _wait_for(self, url: str) -> None:
        """Wait until a server is up, and say so."""
        until = time.monotonic() + self._patience
        is_said = False
        while True:
            try:
                return self._post(url, "/health", slowest=10)
            except (_Away, _Refused) as error:
                if isinstance(error, _Away) and error.nobody and not self._waits:
                    raise self._gone(url, error) from error
                if time.monotonic() > until:
                    raise self._gone(url, error) from error
                if not is_said:
                    is_said = True
                    logger.warning(
                        f"The vLLM server {url} does not answer ({error}). It is waited for, "
                        f"{self._patience:g} s at most (--vllm_server_timeout)."
                    )
            time.sleep(min(_RETRY, self._patience / 4))

    def _gone(self, url: str, error: Exception) -> EngineError:
        waited = f", for {self._patience:g} s (--vllm_server_timeout)"
        start = f"Start it as\n  {self._command}\n"
        if not self._waits:
            return EngineError(
                f"the vLLM server {url} does not answer ({error}). {start}One that is starting is "
                "waited for with --vllm_server_timeout SECONDS."
            )
        return EngineError(
            f"the vLLM server {url} does not answer ({error}){waited}. {start}A run that has begun "
            "goes on from its last checkpoint with --resume_from_checkpoint auto."
        )

    def _ask(self, url: str, path: str, body: Any = None) -> Any:
        """Return an answer of a server, which is asked again where it fails.

        Args:
            body: of a POST, or a function that returns it for each try.
        """
        for attempt in range(_TRIES):
            try:
                return self._post(url, path, body() if callable(body) else body)
            except _Away as error:
                failure: Exception = error
                self._wait_for(url)
            except _Refused as error:
                failure = error
                # A server that was started again in the meantime has no adapters.
                forgot = error.code == 404 and path != _LOAD
                if error.code not in _SERVER_ERRORS and not forgot:
                    break
                time.sleep(_RETRY * 2**attempt)
            if path != _LOAD:
                self._load_at(url)
        raise EngineError(f"the vLLM server {url} refuses {path} ({failure}).") from failure

    def _post(self, url: str, path: str, body: Any = None, slowest: float = _SLOWEST) -> Any:
        """Return the answer to a POST, or to a GET without a body.

        Raises:
            _Refused: the server answers with an error.
            _Away: nobody answers.
        """
        data = None if body is None else json.dumps(body).encode()
        headers = {"Content-Type": "application/json"}
        # vLLM's own name for the key of `vllm serve --api-key`.
        if key := os.environ.get("VLLM_API_KEY"):
            headers["Authorization"] = f"Bearer {key}"
        try:
            request = urllib.request.Request(url + path, data=data, headers=headers)
            with urllib.request.urlopen(request, timeout=slowest) as answer:
                text = answer.read().decode()
        except urllib.error.HTTPError as error:
            raise _Refused(error.code, error.read().decode(errors="replace")) from error
        # An URLError is an OSError, too, and so is a connection that breaks off.
        except (OSError, HTTPException) as error:
            reason = getattr(error, "reason", error)
            # A name that is not known, or an address where nobody listens.
            nobody = isinstance(reason, ConnectionRefusedError | socket.gaierror)
            raise _Away(f"{type(error).__name__}: {reason}", nobody=nobody) from error
        return json.loads(text) if text.startswith("{") else None

    def _at_all(self, action: Callable[[str], None]) -> None:
        _in_parallel(action, self.urls)


class _Refused(Exception):
    """A server answered with an error."""

    def __init__(self, code: int, text: str) -> None:
        super().__init__(f"{code}: {text.strip()[:500]}")
        self.code = code
        self.text = text


class _Away(Exception):
    """A server did not answer; there may be nobody at its address."""

    def __init__(self, reason: str, *, nobody: bool) -> None:
        super().__init__(reason)
        self.nobody = nobody


def _in_parallel(action: Callable[[Any], Any], items: Sequence[Any]) -> list[Any]:
    if len(items) == 1:
        return [action(items[0])]
    with ThreadPoolExecutor(max_workers=max(1, len(items))) as threads:
        return list(threads.map(action, items))


def _request_body(sampling: dict[str, Any]) -> dict[str, Any]:
    """Return the request for completions that TRL 1.16 makes of its settings."""
    body = dict(sampling)
    regex = body.pop("structured_outputs_regex", None)
    more = body.pop("generation_kwargs", None)
    if regex is not None:
        body["structured_outputs"] = {"regex": regex}
    body.update(more or {})
    body.setdefault("n", 1)
    return body | {"return_token_ids": True, "return_tokens_as_token_ids": True}


def _log_probs(choice: Mapping[str, Any]) -> list[list[float | None]]:
    """Return the log-probability of each token of a completion; None where there is no number."""
    values: list[list[float | None]] = []
    for value in choice["logprobs"]["token_logprobs"]:
        known = value is not None and not math.isnan(value)
        values.append([value if known else None])
    return values
