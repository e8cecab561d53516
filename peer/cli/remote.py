"""The peers of a cluster as a client sees them: one is asked, and another one when it does not answer."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar
from urllib.parse import quote

import click
import httpx

T = TypeVar("T")

CONNECT_TIMEOUT_S = 2.0
HANG_TIMEOUT_S = 3.0
"""A peer that says nothing for so long when asked for its members hangs, and another one is asked."""
SILENCE_TIMEOUT_S = 15.0
"""No byte for so long in the middle of a request."""

TRIES_AT_ONE_URL = 3
"""Several peers may share a port: of a hung one's connections the next one probably goes to another."""

ELSEWHERE = (httpx.codes.SERVICE_UNAVAILABLE, httpx.codes.INSUFFICIENT_STORAGE)
"""Refusals that another peer may not repeat."""


class Refused(click.ClickException):
    """A peer refused; its own sentence."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class Unreachable(click.ClickException):
    """No peer answers."""


class Remote:
    """A cluster, reached by the URLs of one peer or several. Closed by `with`."""

    def __init__(self, urls: Sequence[str], transport: httpx.BaseTransport | None = None) -> None:
        self._given = tuple(dict.fromkeys(url.rstrip("/") for url in urls))
        self._known: list[str] = []
        self.http = httpx.Client(
            transport=transport,
            trust_env=False,
            follow_redirects=False,
            timeout=httpx.Timeout(SILENCE_TIMEOUT_S, connect=CONNECT_TIMEOUT_S),
            limits=httpx.Limits(max_connections=None),
            headers={"accept-encoding": "identity"},
        )

    def __enter__(self) -> Remote:
        return self

    def __exit__(self, *_: object) -> None:
        self.http.close()

    def urls(self) -> list[str]:
        """Where to ask: first a peer that just answered, then the other ones it knows to be up.

        Raises Unreachable when none of those given answers.
        """
        if not self._known:
            self._known = self._meet()
        return self._known

    def first_answer(self, ask: Callable[[str], T]) -> T:
        """What `ask` gives for the URL of one peer or, when that one fails or cannot, of another.

        Raises Refused when the last one refused, else Unreachable.
        """
        failure: click.ClickException | None = None
        for url in self.urls():
            try:
                return ask(url)
            except Refused as error:
                if error.status not in ELSEWHERE:
                    raise
                failure = error
            except httpx.TransportError as error:
                failure = failure or Unreachable(f"{url} stopped answering ({_short(error)}), and so did all others")
        assert failure is not None
        raise failure

    def json(
        self,
        method: str,
        path: str,
        params: Mapping[str, str] | None = None,
        timeout_s: float | None = SILENCE_TIMEOUT_S,
    ) -> Any:
        """What a peer answers, as JSON. Raises Refused, Unreachable."""

        def ask(url: str) -> Any:
            timeout = httpx.Timeout(timeout_s, connect=CONNECT_TIMEOUT_S)
            return checked(self.http.request(method, url + path, params=params, timeout=timeout)).json()

        return self.first_answer(ask)

    def answer_of(self, url: str, path: str) -> httpx.Response | None:
        """What this very peer answers, a refusal too; None when it does not answer."""
        try:
            return self.http.get(url + path, timeout=HANG_TIMEOUT_S)
        except httpx.TransportError:
            return None

    def _meet(self) -> list[str]:
        failures = []
        left = list(self._given)
        # Each once before one is asked again: another address may answer at once.
        for _ in range(TRIES_AT_ONE_URL):
            for url in list(left):
                try:
                    response = self.http.get(f"{url}/nodes", timeout=HANG_TIMEOUT_S)
                    return [url, *(other for other in _addresses(checked(response)) if other != url)]
                except httpx.ConnectError as error:
                    failures.append(f"{url} ({_short(error)})")
                    left.remove(url)
                except httpx.TransportError as error:
                    failures.append(f"{url} ({_short(error)})")
                except Refused as error:
                    failures.append(f"{url} ({error.message})")
                    left.remove(url)
        where = ", ".join(dict.fromkeys(failures))
        raise Unreachable(f"no peer answers at {where}; start some with minidfs cluster, or say where with --to URL")


def _addresses(response: httpx.Response) -> list[str]:
    """The members that are up, the quickest to answer first."""
    try:
        nodes = [node for node in response.json() if node["status"] == "UP"]
        return [str(node["address"]) for node in sorted(nodes, key=lambda node: int(node["latency_ms"]))]
    except (ValueError, TypeError, KeyError):
        raise Refused(response.status_code, "what answers there is no peer of Mini DFS") from None


def checked(response: httpx.Response) -> httpx.Response:
    """The response of a peer that did as it was asked. Raises Refused."""
    if response.is_success:
        return response
    try:
        message = str(response.json()["error"])
    except (ValueError, TypeError, KeyError):
        message = f"{response.url} answered with status {response.status_code} and no reason; is it a peer of Mini DFS?"
    raise Refused(response.status_code, message)


@contextmanager
def streamed(remote: Remote, url: str, headers: Mapping[str, str]) -> Iterator[httpx.Response]:
    """A response whose body has not been read; a refusal's has. Raises Refused and errors of httpx."""
    with remote.http.stream("GET", url, headers=headers) as response:
        if not response.is_success:
            response.read()
        yield checked(response)


def file_path(key: str) -> str:
    """The path of a file's content."""
    return f"/files/{quote(key, safe='')}"


def _short(error: Exception) -> str:
    if isinstance(error, httpx.ConnectTimeout | httpx.ReadTimeout | httpx.WriteTimeout):
        return "no answer"
    text = str(error)
    return "connection refused" if "refused" in text.lower() else text.rpartition("] ")[2] or type(error).__name__
