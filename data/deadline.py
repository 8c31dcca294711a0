"""Run a function with a time limit, in a helper thread that is left behind when it hangs.

Decoders are C code: signals wait until it returns, but it releases the interpreter's lock, so another thread may go
on. One thread serves all calls until one of them hangs.
"""

import threading
from collections.abc import Callable
from queue import Empty, SimpleQueue
from typing import Generic, TypeVar

Result = TypeVar("Result")


class Deadline(Generic[Result]):
    """Calls functions with a limit of `seconds` each; TimeoutError for what takes longer."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self._calls: SimpleQueue[Callable[[], Result]] | None = None
        self._answers: SimpleQueue[tuple[Result | None, Exception | None]] = SimpleQueue()

    def run(self, function: Callable[[], Result]) -> Result:
        """The function's result or exception."""
        if self._calls is None:
            self._calls, self._answers = SimpleQueue(), SimpleQueue()
            threading.Thread(target=_serve, args=(self._calls, self._answers), daemon=True).start()
        self._calls.put(function)
        try:
            result, error = self._answers.get(timeout=self.seconds)
        except Empty:
            self._calls = None  # the thread hangs: forget it, the next call starts another
            raise TimeoutError(f"took longer than {self.seconds:g} s") from None
        if error is not None:
            raise error
        return result  # type: ignore[return-value]  # without an error there is a result


def _serve(
    calls: SimpleQueue[Callable[[], Result]], answers: SimpleQueue[tuple[Result | None, Exception | None]]
) -> None:
    while True:
        function = calls.get()
        try:
            answers.put((function(), None))
        except Exception as error:
            answers.put((None, error))
        del function
