"""Range requests: one part of a remote file in one request, over connections that stay open.

http and https use the standard library; other schemes go through fsspec. A server that answers a range request with the
whole file cannot seek: NotSeekableError.
"""

import os
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from http.client import HTTPConnection, HTTPException, HTTPResponse, HTTPSConnection
from urllib.parse import urljoin, urlsplit

from data.loading.remote import BLOCK, PERMANENT, PIPE, READ_TIMEOUT, Patience, open_fsspec, refuse_trickle

REDIRECTS = (301, 302, 303, 307, 308)
MAX_REDIRECTS = 5


class NotSeekableError(Exception):
    """The source of a file returns it whole, whatever part was requested."""


@dataclass(frozen=True)
class Part:
    """The content of a range, and what the server said about the file."""

    content: bytes
    total: int | None = None  # bytes of the whole file
    etag: str = ""


def can_seek(url: str) -> bool:
    """Whether parts of this source may be requested; a server may still refuse."""
    return not url.startswith(PIPE)


def read_range(url: str, start: int, count: int, outage: float) -> Part:
    """Bytes [start, start + count) of a file, with retries; OSError after `outage` seconds without an answer.

    NotSeekableError if the server ignores the range, FileNotFoundError if there is no such file.
    """
    patience = Patience(url, outage)
    while True:
        try:
            if url.startswith(("http://", "https://")):
                return _read_http(url, start, count)
            return Part(_read_fsspec(url, start, count))
        except (FileNotFoundError, NotSeekableError):
            raise
        except (OSError, HTTPException) as error:
            patience.wait(str(error) or type(error).__name__)


def _read_http(url: str, start: int, count: int) -> Part:
    target = url
    for _ in range(MAX_REDIRECTS + 1):
        answer = _connections.request(target, {"Range": f"bytes={start}-{start + count - 1}"})
        if answer.status not in REDIRECTS:
            break
        target = urljoin(target, answer.headers.get("Location", ""))
        _connections.finish(answer)
    if answer.status != 206:
        reason = f"HTTP {answer.status} {answer.reason}"
        _connections.drop()  # a body that nobody reads would be taken for the next answer
        if answer.status == 200:
            raise NotSeekableError(f"{url}: the server does not support range requests")
        if answer.status in PERMANENT:
            raise FileNotFoundError(f"{url}: {reason}; check the URL and your permission to read it")
        raise OSError(reason)
    announced, _, total = answer.headers.get("Content-Range", "").removeprefix("bytes ").partition("/")
    if announced.partition("-")[0].strip() != str(start):
        _connections.drop()
        raise NotSeekableError(f"{url}: the server answered the range from {start} with {announced or 'no range'}")
    content = bytearray()
    try:
        for block in refuse_trickle(_blocks(answer)):
            content += block
            if len(content) >= count:
                break
    except BaseException:
        _connections.drop()
        raise
    _connections.finish(answer)
    if len(content) < count:
        raise OSError(f"ended after {len(content)} of {count} bytes")
    return Part(bytes(content[:count]), int(total) if total.isdecimal() else None, answer.headers.get("ETag", ""))


def _blocks(answer: HTTPResponse) -> Iterator[bytes]:
    while block := answer.read1(BLOCK):
        yield block


def _read_fsspec(url: str, start: int, count: int) -> bytes:
    filesystem, path = open_fsspec(url)
    content: bytes = filesystem.cat_file(path, start=start, end=start + count)
    if len(content) < count:
        raise OSError(f"ended after {len(content)} of {count} bytes")
    return content


class _Connections:
    """One open connection per server, for this process alone: a forked process opens its own."""

    def __init__(self) -> None:
        self.process = os.getpid()
        self.open: dict[tuple[str, str], HTTPConnection] = {}

    def request(self, url: str, headers: dict[str, str]) -> HTTPResponse:
        """Send a GET request. Servers close idle connections: on one that was used before, it is tried twice."""
        if os.getpid() != self.process:
            self.process, self.open = os.getpid(), {}
        parts = urlsplit(url)
        place = parts.scheme, parts.netloc
        used = place in self.open
        connection = self.open.pop(place, None) or _connect(parts.scheme, parts.netloc)
        path = parts.path or "/"
        if isinstance(connection, HTTPConnection) and getattr(connection, "through_proxy", False):
            path = f"{parts.scheme}://{parts.netloc}{path}"
        try:
            connection.request("GET", path + (f"?{parts.query}" if parts.query else ""), headers=headers)
            answer = connection.getresponse()
        except (OSError, HTTPException):
            connection.close()
            if used:
                return self.request(url, headers)
            raise
        self.open[place] = connection
        return answer

    def finish(self, answer: HTTPResponse) -> None:
        """Read what is left of an answer, so that its connection can be used again; a long rest ends it instead."""
        if not answer.isclosed() and len(answer.read(BLOCK)) == BLOCK:
            self.drop()

    def drop(self) -> None:
        """Close all connections."""
        for connection in self.open.values():
            connection.close()
        self.open.clear()


def _connect(scheme: str, server: str) -> HTTPConnection:
    """A connection, through the proxy of the environment if it names one for this server."""
    kind = HTTPSConnection if scheme == "https" else HTTPConnection
    proxy = urllib.request.getproxies().get(scheme, "")
    if not proxy or urllib.request.proxy_bypass(server.rpartition("@")[2].partition(":")[0]):
        return kind(server.rpartition("@")[2], timeout=READ_TIMEOUT)
    connection = kind(urlsplit(proxy).netloc or proxy, timeout=READ_TIMEOUT)
    if scheme == "https":
        connection.set_tunnel(server.rpartition("@")[2])
    else:
        connection.through_proxy = True  # type: ignore[attr-defined]
    return connection


_connections = _Connections()
