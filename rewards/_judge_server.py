"""Ask a chat-completions server, within limits of time and size, and name what it sent instead.

The `openai` client sends, repeats what failed for a moment, and waits as `Retry-After` says. Its
time-out is one of silence: a server that sends a byte now and then is never late. So each request,
and all that are made for one completion, have a deadline here, and a reply has a longest length.
"""

import asyncio
import email.utils
import json
import math
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from grpo_hf.data.completions import message_text
from grpo_hf.errors import RewardError, RewardSpecError

# A verdict with its reasons has a few kilobytes.
_LONGEST_REPLY = 8 << 20  # bytes
# Seconds of `Retry-After` that every version of the client waits by itself.
_CLIENT_WAITS = 60.0
_MOST_REDIRECTS = 5
# Characters of what came that a message quotes.
_QUOTED = 200


class JudgeServerError(RewardError, ConnectionError):
    """The server gave no answer, or one that is no chat completion."""


class JudgeTimeoutError(RewardError, TimeoutError):
    """The time for a completion was up before there was a verdict."""


@dataclass(frozen=True)
class Reply:
    """What came back for a request.

    Args:
        text: of the judge; empty if there is none.
        problem: what came instead of a text; empty if there is a text.
        is_final: whether the same request would surely end the same way.
        tokens_in, tokens_out: as the server counts them; 0 if it does not.
    """

    text: str = ""
    problem: str = ""
    is_final: bool = False
    tokens_in: int = 0
    tokens_out: int = 0


@dataclass
class _Patience:
    """The time that is left for a completion, and what has kept it from a verdict so far."""

    deadline: float
    obstacle: str = "the server has not finished its answer"
    asked_to_wait: float | None = None

    def left(self) -> float:
        return self.deadline - time.monotonic()


# A context variable, because the HTTP client stands between the two functions that share it.
_patience: ContextVar[_Patience] = ContextVar("patience of a judge")


@asynccontextmanager
async def time_for_a_verdict(seconds: float) -> AsyncIterator[None]:
    """Bound all requests, repetitions and waits in the block.

    Raises:
        JudgeTimeoutError: the time was up; it names what took it.
    """
    patience = _Patience(time.monotonic() + seconds)
    token = _patience.set(patience)
    limit = asyncio.timeout(seconds)
    try:
        async with limit:
            yield
    except TimeoutError:
        if not limit.expired():
            raise
        raise JudgeTimeoutError(
            f"judge: no verdict within timeout={seconds:g} s: {patience.obstacle}."
        ) from None
    finally:
        _patience.reset(token)


# Constructing a client takes 40 ms, so one is kept for all calls.
@lru_cache
def judge_client(base_url: str, api_key: str, request_timeout: float, retries: int) -> Any:
    """Return a client whose requests have a deadline and whose replies have a longest length.

    Args:
        request_timeout: seconds for one request, from its first byte to the last of the reply.
        retries: how often a request that failed for a moment is sent again.
    """
    try:
        import httpx2
        from openai import AsyncOpenAI, DefaultAsyncHttpxClient
    except ImportError as error:
        raise RewardSpecError(
            "judge: the package 'openai' is not installed. Install it with: "
            "pip install 'grpo-hf[judge]'"
        ) from error

    class BoundedClient(DefaultAsyncHttpxClient):
        async def send(self, request: Any, **options: Any) -> Any:
            patience = _patience.get()
            try:
                async with asyncio.timeout(request_timeout):
                    response = await super().send(request, **(options | {"stream": True}))
                    response = await _whole(response)
            except TimeoutError:
                limit = f"request_timeout={request_timeout:g} s"
                patience.obstacle = f"a request took more than {limit}"
                # The client sends the request again after a time-out of its own HTTP library.
                raise httpx2.ReadTimeout(patience.obstacle, request=request) from None
            if response.status_code >= 400:
                patience.obstacle = f"the server answered with status {response.status_code}"
                attempt = int(request.headers.get("x-stainless-retry-count", 0))
                await _heed_retry_after(response, patience, may_retry=attempt < retries)
            return response

    return AsyncOpenAI(
        base_url=base_url,
        api_key=api_key,
        timeout=request_timeout,
        max_retries=retries,
        # A connection belongs to an event loop, and the client may outlive the loop. So no
        # connection is kept after its request.
        default_headers={"Connection": "close"},
        http_client=BoundedClient(timeout=request_timeout, max_redirects=_MOST_REDIRECTS),
    )


async def _whole(response: Any) -> Any:
    """Return a response with its body read and decoded, up to the longest length."""
    body = bytearray()
    async for chunk in response.aiter_bytes():
        body += chunk
        if len(body) > _LONGEST_REPLY:
            break
    await response.aclose()
    headers = []
    for name, value in response.headers.multi_items():
        # They speak of the body as it was sent.
        if name not in ("content-encoding", "content-length", "transfer-encoding"):
            headers.append((name, value))
    return type(response)(
        response.status_code, headers=headers, content=bytes(body), request=response.request
    )


async def _heed_retry_after(response: Any, patience: _Patience, *, may_retry: bool) -> None:
    """Wait as long as the server asks, or see to it that nothing is sent where that is too long."""
    seconds = _retry_after(response.headers)
    if seconds is None:
        return
    patience.obstacle += f" and asked to wait {seconds:.4g} s (Retry-After)"
    if seconds > patience.left():
        patience.asked_to_wait = seconds
        response.headers["x-should-retry"] = "false"
    elif seconds > _CLIENT_WAITS and may_retry:
        await asyncio.sleep(seconds)
        del response.headers["retry-after"]


def _retry_after(headers: Any) -> float | None:
    """Return the seconds that a server asks to wait, from a number or a date.

    >>> _retry_after({"retry-after": "600"}), _retry_after({"retry-after": "soon"})
    (600.0, None)
    >>> _retry_after({"retry-after": "Fri, 31 Dec 9999 23:59:59 GMT"}) > 1e9
    True
    """
    value = headers.get("retry-after", "")
    try:
        seconds = float(value)
    except ValueError:
        try:
            seconds = email.utils.parsedate_to_datetime(value).timestamp() - time.time()
        except (TypeError, ValueError, OverflowError):
            return None
    return seconds if 0 < seconds < math.inf else None


async def ask(client: Any, request: dict[str, Any], messages: list[dict[str, str]]) -> Reply:
    """Return the reply to a conversation.

    Args:
        client: of `judge_client`.
        request: the other fields of the request.

    Raises:
        RewardSpecError: the server does not know the address, the model or the key.
        JudgeServerError: it did not answer after all retries, or asks to wait too long.
        openai.APIStatusError: it refused.
    """
    from openai import APIConnectionError, APIStatusError

    try:
        response = await client.chat.completions.create(messages=messages, **request)
    except (APIConnectionError, APIStatusError) as error:
        raise _named(error, client, request["model"]) from None
    # What calls itself JSON and is none.
    except UnicodeDecodeError:
        return Reply(problem="bytes that are no UTF-8")
    except json.JSONDecodeError as error:
        return Reply(problem=f"broken JSON, {_quote(error.doc, client)!r}")
    return _reply(response, client)


def _named(error: Any, client: Any, model: str) -> Exception:
    """Return the error that says what happened, without the key."""
    where = f"judge: {client.base_url} with model {model!r}"
    status = getattr(error, "status_code", None)
    if status is None:
        # The cause says what happened; the error itself is "Connection error."
        cause = error.__cause__ or error
        reason = _quote(f"{type(cause).__name__}: {cause}", client)
        return JudgeServerError(
            f"{where}: no answer, {client.max_retries} retries included ({reason})."
        )
    # A server may repeat the key, as in "Incorrect API key provided: ...", or send a page.
    error.args = (_quote(str(error), client),)
    if _patience.get().asked_to_wait is not None:
        return JudgeServerError(
            f"{where}: {error}. {_patience.get().obstacle}, longer than is left of timeout. Raise "
            "timeout, or ask less at a time (concurrency)."
        )
    if status in (401, 404):
        return RewardSpecError(
            f"{where}: {error}. Check base_url (it mostly ends in /v1), model, and the API key in "
            "the environment variable that api_key_env names."
        )
    return error


def _reply(response: Any, client: Any) -> Reply:
    """Return the text of a response, or what it is instead.

    The client does not check what a server sent: each part may be missing or of another type.
    """
    if isinstance(response, str):
        return Reply(problem=_page(response, client))
    tokens = _tokens(getattr(response, "usage", None))
    choice = _first(getattr(response, "choices", None))
    message = getattr(choice, "message", None)
    if message is None:
        shown = response.model_dump_json() if hasattr(response, "model_dump_json") else response
        problem = f"JSON that is no chat completion, {_quote(str(shown), client)!r}"
        return Reply(problem=problem, **tokens)
    reason = getattr(choice, "finish_reason", None)
    text = message_text({"content": getattr(message, "content", None)})
    if text.strip():
        # The last digits of a number may be missing, so that line must not be a verdict.
        cut_off = " [cut off at max_tokens]" if reason == "length" else ""
        return Reply(text=text.replace(client.api_key, "***") + cut_off, **tokens)
    problem, is_final = _no_text(message, reason)
    return Reply(problem=problem, is_final=is_final, **tokens)


def _tokens(usage: Any) -> dict[str, int]:
    tokens = {}
    for name, field in (("tokens_in", "prompt_tokens"), ("tokens_out", "completion_tokens")):
        count = getattr(usage, field, None)
        tokens[name] = count if isinstance(count, int) else 0
    return tokens


def _first(entries: Any) -> Any:
    return entries[0] if isinstance(entries, list) and entries else None


def _no_text(message: Any, reason: Any) -> tuple[str, bool]:
    """Return what a message holds in place of text, and whether it would do so again."""
    refusal = getattr(message, "refusal", None)
    if refusal:
        return f"a refusal, {str(refusal)[:_QUOTED]!r}", True
    if reason == "content_filter":
        return "nothing but a note that a content filter stopped the reply", True
    thoughts = getattr(message, "reasoning_content", None) or getattr(message, "reasoning", None)
    what = f"{len(str(thoughts))} characters of reasoning and no text" if thoughts else "no text"
    if reason == "length":
        return f"{what}, because max_tokens was used up: raise it", True
    if getattr(message, "tool_calls", None):
        return "the call of a tool and no text", False
    return f"a message with {what} (content {getattr(message, 'content', None)!r})", False


def _page(text: str, client: Any) -> str:
    """Return what a body is that is no JSON."""
    start = text.lstrip()[:_QUOTED].lower()
    if not start:
        return "an empty body"
    is_page = start.startswith(("<!doctype html", "<html"))
    what = "an HTML page" if is_page else "text that is no JSON"
    return f"{what}, {_quote(text, client)!r}"


def _quote(text: str, client: Any) -> str:
    """Return the beginning of a text, without the key."""
    text = text.replace(client.api_key, "***")
    return text if len(text) <= _QUOTED else text[:_QUOTED] + "..."
