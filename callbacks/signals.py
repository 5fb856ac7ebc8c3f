"""Signals that wait until a step is done."""

import os
import signal
import threading
from typing import Any


class PendingSignals:
    """Remembers a signal instead of acting amid a step: half an optimizer step must not be saved.

    SIGTERM and SIGINT are requests to stop; a second SIGINT stops at once. A signal that Lightning handles (SLURM's requeue)
    is handed to Lightning's handler later, by :meth:`forward`. The trainer puts all handlers back when it ends.

    Attributes:
        pending: The signal's number; 0 for none.
    """

    def __init__(self) -> None:
        """Nothing is installed yet."""
        self.pending = 0
        self._interrupted = False
        self._handlers: dict[int, Any] = {}

    def install(self) -> None:
        """Replace the handlers; does nothing outside the main thread, where Python allows none."""
        self.pending = 0
        self._interrupted = False
        self._handlers = {}
        if threading.current_thread() is not threading.main_thread():
            return
        for number in sorted(signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}):
            handler = signal.getsignal(number)
            lightnings = type(handler).__module__.startswith("lightning.")
            if lightnings and number != signal.SIGTERM:
                self._handlers[number] = handler
            if lightnings or number in (signal.SIGTERM, signal.SIGINT):
                signal.signal(number, self._note)

    def stops(self, number: int) -> bool:
        """Whether a signal asks to stop; others are forwarded."""
        return bool(number) and number not in self._handlers

    def forward(self, number: int) -> None:
        """Let Lightning handle a signal now."""
        if self.pending == number:  # else a request to stop has come meanwhile
            self.pending = 0
        self._handlers[number](number, None)

    def _note(self, number: int, frame: Any) -> None:
        if number == signal.SIGINT:
            if self._interrupted:
                raise KeyboardInterrupt
            self._interrupted = True  # not read off the pending signal, which may be a SIGTERM
            os.write(
                2, b"\ninterrupted: saving when this step is done; once more stops at once\n"
            )  # print may be amid a line
        self.pending = max(self.pending, number, key=self._rank)

    def _rank(self, number: int) -> tuple[bool, int]:
        """A request to stop counts more than one to save."""
        return self.stops(number), number
