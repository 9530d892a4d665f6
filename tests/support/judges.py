"""A chat-completions server that misbehaves, byte by byte, as a test tells it to."""

import asyncio
import json
import re
import threading
from collections.abc import Awaitable, Callable
from typing import Any

# What a connection does once the request has been read. It gets the question and the number of
# requests so far, this one included.
Answer = Callable[["Exchange"], Awaitable[None]]


class Exchange:
    """One request, and the connection to answer it on."""

    def __init__(self, body: dict[str, Any], number: int, writer: asyncio.StreamWriter) -> None:
        self.body = body
        self.number = number
        self.writer = writer

    @property
    def question(self) -> str:
        return str(self.body["messages"][0]["content"])

    @property
    def tag(self) -> str:
        """The random word that a verdict has to contain."""
        found = re.search(r"\nSCORE ([0-9a-f]+): <number>", self.question)
        assert found is not None
        return found[1]

    async def write(self, data: bytes | str) -> None:
        self.writer.write(data.encode() if isinstance(data, str) else data)
        await self.writer.drain()

    async def trickle(self, data: str, seconds: float = 0.05) -> None:
        """Write one byte at a time, for ever a little too soon for a time-out of silence."""
        for byte in data.encode():
            await self.write(bytes([byte]))
            await asyncio.sleep(seconds)

    async def respond(
        self,
        body: bytes | str = "",
        *,
        status: int = 200,
        kind: str = "application/json",
        length: int | None = None,
        **headers: str,
    ) -> None:
        """Write a whole response; `length` is what it says of its body."""
        data = body.encode() if isinstance(body, str) else body
        lines = [f"HTTP/1.1 {status} Said", f"Content-Type: {kind}"]
        lines.append(f"Content-Length: {len(data) if length is None else length}")
        lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
        await self.write("\r\n".join(lines).encode() + b"\r\n\r\n" + data)

    async def say(self, content: Any, *, finish_reason: str = "stop", **message: Any) -> None:
        """Write a chat completion; `{tag}` in a text becomes the tag."""
        await self.respond(chat(self.filled(content), finish_reason, **message))

    def filled(self, content: Any) -> Any:
        return content.replace("{tag}", self.tag) if isinstance(content, str) else content


def chat(content: Any, finish_reason: str = "stop", **message: Any) -> str:
    """Return the JSON of a chat completion."""
    message = {"role": "assistant", "content": content} | message
    choice = {"index": 0, "message": message, "finish_reason": finish_reason}
    usage = {"prompt_tokens": 100, "completion_tokens": 20, "total_tokens": 120}
    return json.dumps({"id": "1", "object": "chat.completion", "choices": [choice], "usage": usage})


class MisbehavingServer:
    """A server on a free port of this machine; `answer` says what it does."""

    def __init__(self) -> None:
        self.answer: Answer = lambda exchange: exchange.say("SCORE {tag}: 7")
        self.bodies: list[dict[str, Any]] = []
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        starting = asyncio.start_server(self._serve, "127.0.0.1", 0)
        self._server = asyncio.run_coroutine_threadsafe(starting, self._loop).result()
        self.url = f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}/v1"

    def close(self) -> None:
        asyncio.run_coroutine_threadsafe(self._end(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _end(self) -> None:
        self._server.close()
        answering = asyncio.all_tasks() - {asyncio.current_task()}
        for task in answering:
            task.cancel()
        await asyncio.gather(*answering, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode()
            length = re.search(r"content-length: (\d+)", head, re.IGNORECASE)
            body = await reader.readexactly(int(length[1])) if length else b"{}"
            self.bodies.append(json.loads(body))
            await self.answer(Exchange(self.bodies[-1], len(self.bodies), writer))
        # The client hangs up on some of them.
        except OSError:
            pass
        finally:
            writer.close()
