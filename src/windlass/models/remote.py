"""A model on another machine, or in another program, behind an OpenAI-compatible address.

It offers what `LocalModel` offers, so the rest of the stack does not ask which one it has. Nothing is sent before the
first question. The API key goes into one request header and nowhere else: not into errors, not into `repr`.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import httpx
import numpy as np

from windlass.core.errors import Busy, ModelError, UsageError, WindlassError

_CONNECT_SECONDS = 10.0
_EMBED_TEXTS = 64
_LONGEST_QUOTE = 300
# Their tokenizer is unknown. English has about four bytes a token, most other scripts three a character.
_BYTES_PER_TOKEN = 3
_TOKENS_AROUND_A_MESSAGE = 8


class RemoteModel:
    """A chat or embedding model reached over HTTP. Safe to use from several threads.

    Attributes:
        url: The root of the API, ending in `/v1` unless the given address has a path of its own.
        context_length: Tokens that prompt and answer may take together; the servers do not tell, so the caller may.
        fingerprint: 32 hex digits; another address or model name gives another one.

    Example:
        >>> RemoteModel("http://localhost:11434", model="qwen3:4b")
        RemoteModel('http://localhost:11434/v1', model='qwen3:4b')
    """

    def __init__(
        self,
        url: str,
        *,
        model: str | None = None,
        api_key: str | None = None,
        timeout: float = 120.0,
        context_length: int = 8192,
    ) -> None:
        """Check the address; no connection is made.

        Args:
            url: `http://` or `https://` address, with or without `/v1`.
            model: The server's name of the model; default: the first that it lists.
            api_key: Default: `WINDLASS_API_KEY`, else `OPENAI_API_KEY`, else none.
            timeout: Seconds to wait for the next piece of an answer.
            context_length: See above.

        Raises:
            UsageError: Not an address of that kind.
        """
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise UsageError(f"{url!r} is no http:// or https:// address", hint="for example http://localhost:11434/v1")
        if "@" in parts.netloc:
            raise UsageError("the model's address holds a user name or password", hint="use WINDLASS_API_KEY")
        self.url = urlunsplit(parts._replace(path=parts.path.rstrip("/") or "/v1", query="", fragment=""))
        self.context_length = context_length
        self.timeout = timeout
        self._model = model
        self._key = api_key or os.environ.get("WINDLASS_API_KEY") or os.environ.get("OPENAI_API_KEY") or ""
        headers = {"Authorization": f"Bearer {self._key}"} if self._key else {}
        try:
            self._client = httpx.Client(
                headers=headers, timeout=httpx.Timeout(timeout, connect=min(timeout, _CONNECT_SECONDS))
            )
        except UnicodeEncodeError:
            raise UsageError("the API key holds characters that no HTTP header can carry") from None
        self._naming = threading.Lock()

    def __repr__(self) -> str:
        return f"RemoteModel({self.url!r}, model={self._model!r})"

    @property
    def model(self) -> str:
        """The name the server knows the model by; asked from the server when none was given.

        Raises:
            ModelError: The server cannot be reached or lists no model.
        """
        with self._naming:
            if self._model is None:
                listed = self._json("GET", "/models", None)
                try:
                    self._model = str(listed["data"][0]["id"])
                except (KeyError, IndexError, TypeError):
                    raise ModelError(f"{self.url} lists no model", hint="load one there, or name it") from None
            return self._model

    @property
    def fingerprint(self) -> str:
        return hashlib.sha256(f"{self.url}\0{self.model}".encode()).hexdigest()[:32]

    def count(self, text: str) -> int:
        """Tokens of `text`, estimated on the high side: the server's tokenizer is not known here."""
        return math.ceil(len(text.encode("utf-8", "replace")) / _BYTES_PER_TOKEN)

    def count_chat(self, messages: Sequence[Mapping[str, str]]) -> int:
        """Tokens of a conversation, estimated like `count`."""
        return sum(self.count(message["content"]) + _TOKENS_AROUND_A_MESSAGE for message in messages)

    def chat(
        self,
        messages: Sequence[Mapping[str, str]],
        *,
        max_tokens: int = 256,
        temperature: float = 0.0,
        top_p: float = 1.0,
        seed: int = 0,
        stop: Sequence[str] = (),
        cancel: Callable[[], bool] | None = None,
    ) -> Iterator[str]:
        """Pieces of the answer as they arrive. Leaving the loop, or `cancel` returning True, ends the request.

        Raises:
            ModelError: The server cannot be reached, refuses, or answers something else than the protocol says.
            Busy: The server has too much to do (429).
        """
        body: dict[str, Any] = {
            "model": self.model,
            "messages": [dict(message) for message in messages],
            "stream": True,
        }
        body |= {"max_tokens": max_tokens, "temperature": temperature, "seed": seed}
        if stop:
            body["stop"] = list(stop)
        if top_p != 1.0:
            body["top_p"] = top_p
        with self._request("POST", "/chat/completions", body) as answer:
            if "text/event-stream" not in answer.headers.get("content-type", ""):
                # Some servers do not stream and send the whole answer at once.
                yield self._content(self._parse(self._read(answer)), "message")
                return
            for event in self._events(answer):
                if cancel is not None and cancel():
                    return
                piece = self._content(event, "delta")
                if piece:
                    yield piece

    def embed(self, texts: Sequence[str]) -> np.ndarray:
        """Vectors of texts, float32 [n, dim], scaled to length one.

        Raises:
            ModelError: As `chat`; also vectors of different lengths, or with values that are not numbers.
            Busy: The server has too much to do (429).
        """
        rows: list[list[float]] = []
        for first in range(0, len(texts), _EMBED_TEXTS):
            part = list(texts[first : first + _EMBED_TEXTS])
            answer = self._json("POST", "/embeddings", {"model": self.model, "input": part})
            try:
                data = sorted(answer["data"], key=lambda item: int(item["index"]))
                rows += [item["embedding"] for item in data]
            except (KeyError, TypeError, ValueError):
                raise self._not_the_protocol("it has no list of embeddings") from None
            if len(rows) != first + len(part):
                raise self._not_the_protocol(f"{len(part)} texts gave {len(data)} vectors")
        try:
            vectors = np.array(rows, np.float32).reshape(len(rows), -1 if rows else 0)
        except (TypeError, ValueError):
            raise self._not_the_protocol("its vectors are not equally long lists of numbers") from None
        lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
        if not np.isfinite(lengths).all():
            raise self._not_the_protocol("its vectors hold values that are not finite numbers")
        vectors /= np.maximum(lengths, np.float32(1e-12))
        return vectors

    def close(self) -> None:
        """Close the connections."""
        self._client.close()

    @contextlib.contextmanager
    def _request(self, method: str, path: str, body: dict[str, Any] | None) -> Iterator[httpx.Response]:
        """One request whose status is good; all that may go wrong in it comes out as an error of ours."""
        address = self.url + path
        try:
            with self._client.stream(method, address, json=body) as answer:
                if answer.status_code != 200:
                    raise self._refusal(answer, address)
                yield answer
        except httpx.TimeoutException as error:
            raise ModelError(
                f"{address} did not answer within {self.timeout:g} s", hint="is the server busy loading a model?"
            ) from error
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise ModelError(
                f"cannot talk to {address}: {self._quote(str(error)) or type(error).__name__}",
                hint="start the server, or correct the address",
            ) from error

    def _json(self, method: str, path: str, body: dict[str, Any] | None) -> Any:
        with self._request(method, path, body) as answer:
            return self._parse(self._read(answer))

    def _read(self, answer: httpx.Response) -> str:
        return answer.read().decode("utf-8", "replace")

    def _parse(self, text: str) -> Any:
        try:
            return json.loads(text)
        except (ValueError, RecursionError):
            raise self._not_the_protocol(f"it is not JSON: {self._quote(text)!r}") from None

    def _events(self, answer: httpx.Response) -> Iterator[Any]:
        """The JSON objects of a server-sent event stream, up to `[DONE]` or its end."""
        for line in answer.iter_lines():
            if not line.startswith("data:"):
                continue
            data = line.removeprefix("data:").strip()
            if data == "[DONE]":
                return
            event = self._parse(data)
            if isinstance(event, dict) and event.get("error"):
                raise ModelError(f"{self.url} broke off: {self._quote(_message(event))}")
            yield event

    def _content(self, event: Any, field: str) -> str:
        """The text of one event. Events without choices (usage, keep-alive) are allowed and empty."""
        try:
            choices = event["choices"]
            return str((choices[0].get(field) or {}).get("content") or "") if choices else ""
        except (KeyError, IndexError, TypeError, AttributeError):
            raise self._not_the_protocol(f"an event has no choices: {self._quote(json.dumps(event))}") from None

    def _refusal(self, answer: httpx.Response, address: str) -> WindlassError:
        status = answer.status_code
        said = self._quote(_message_of(self._read(answer)))
        what = f"{address} answered {status}" + (f": {said}" if said else "")
        if status in (401, 403):
            hint = "another API key is needed" if self._key else "an API key is needed"
            return ModelError(what, hint=f"{hint} in WINDLASS_API_KEY")
        if status == 404:
            return ModelError(what, hint="check the address (it mostly ends in /v1) and the model's name")
        if status == 429:
            return Busy(what, hint="wait a little")
        if answer.is_redirect:
            return ModelError(what, hint=f"use the address it points to: {answer.headers.get('location', '')}")
        return ModelError(what)

    def _not_the_protocol(self, why: str) -> ModelError:
        return ModelError(
            f"{self.url} answered, but not as an OpenAI-compatible server: {why}", hint="check the address"
        )

    def _quote(self, text: str) -> str:
        """What a server said, short, on one line, and without our key should it have repeated it."""
        if self._key:
            text = text.replace(self._key, "***")
        line = " ".join(text.split())
        return line if len(line) <= _LONGEST_QUOTE else line[:_LONGEST_QUOTE] + "..."


def _message_of(text: str) -> str:
    try:
        return _message(json.loads(text))
    except (ValueError, RecursionError):
        return text


def _message(body: Any) -> str:
    """The human part of an error object, of whatever shape."""
    error = body.get("error", body) if isinstance(body, dict) else body
    if isinstance(error, dict):
        error = error.get("message", error)
    return error if isinstance(error, str) else json.dumps(error)
