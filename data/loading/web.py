"""Open http and https addresses with a limit on how long the answer's headers may take.

The timeout of the standard library is one for each read from the socket: a server that sends its headers byte by byte
would never exceed it.
"""

import socket
import threading
import urllib.request
from functools import cache
from http.client import HTTPConnection, HTTPResponse, HTTPSConnection
from typing import Any


def open_address(request: urllib.request.Request, timeout: float) -> Any:
    """The answer to a request; OSError if its headers are not complete after `timeout` seconds."""
    return _opener().open(request, timeout=timeout)


class _LimitedConnection(HTTPConnection):
    """A connection that is cut when its timeout has passed without complete headers."""

    gave_up = False

    def getresponse(self) -> HTTPResponse:
        timer = threading.Timer(float(self.timeout or 60.0), self._give_up)
        timer.daemon = True
        timer.start()
        try:
            answer = super().getresponse()
        except Exception as error:
            if self.gave_up:
                raise TimeoutError(self._complaint()) from error
            raise
        finally:
            timer.cancel()
        if self.gave_up:  # the end of the connection looks like the end of the headers
            answer.close()
            raise TimeoutError(self._complaint())
        return answer

    def _give_up(self) -> None:
        self.gave_up = True
        if self.sock is not None:
            self.sock.shutdown(socket.SHUT_RDWR)

    def _complaint(self) -> str:
        return f"the headers were not complete after {self.timeout:g} s"


class _LimitedSecureConnection(_LimitedConnection, HTTPSConnection):
    """The same for https."""


class _Handler(urllib.request.HTTPHandler):
    def http_open(self, req: urllib.request.Request) -> Any:
        return self.do_open(_LimitedConnection, req)


class _SecureHandler(urllib.request.HTTPSHandler):
    def https_open(self, req: urllib.request.Request) -> Any:
        return self.do_open(_LimitedSecureConnection, req)


@cache
def _opener() -> urllib.request.OpenerDirector:
    return urllib.request.build_opener(_Handler, _SecureHandler)
