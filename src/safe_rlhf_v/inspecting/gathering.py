"""Requests that come one by one, answered in batches: inspect runs many samples at once, which a network reads together."""

from collections.abc import Callable, Hashable, Sequence
from typing import Any, Generic, TypeVar

Request = TypeVar("Request")
Reply = TypeVar("Reply")


class _Waiting:
    """A request and, in time, its reply or error."""

    def __init__(self, request: Any, kind: Hashable) -> None:
        self.request = request
        self.kind = kind
        self.done = False
        self.reply: Any = None
        self.error: Exception | None = None


class Gathered(Generic[Request, Reply]):
    """Runs a function of many requests on those that wait, in a thread of its own, one batch at a time.

    A batch that fails is tried again request by request, so that one bad request fails alone.
    """

    def __init__(self, function: Callable[[Sequence[Request]], Sequence[Reply]], size: int) -> None:
        """Choose what is run.

        Args:
            function: Gives one reply per request, in order.
            size: Most requests of a batch.
        """
        self._function = function
        self._size = size
        self._waiting: list[_Waiting] = []
        self._lock: Any = None

    async def ask(self, request: Request, kind: Hashable = None) -> Reply:
        """The reply to one request.

        Args:
            request: The request.
            kind: Only requests of one kind run together.

        Raises:
            Exception: What the function raised for this request.
        """
        import anyio

        if self._lock is None:
            self._lock = anyio.Lock()
        own = _Waiting(request, kind)
        self._waiting.append(own)
        try:
            await anyio.lowlevel.checkpoint()  # whoever else is ready joins the batch
            async with self._lock:
                if not own.done:
                    alike = [one for one in self._waiting if one.kind == kind and one is not own]
                    batch = [own, *alike[: self._size - 1]]
                    self._waiting = [one for one in self._waiting if one not in batch]
                    await anyio.to_thread.run_sync(self._run, batch)
        finally:
            self._waiting = [one for one in self._waiting if one is not own]
        if own.error is not None:
            raise own.error
        reply: Reply = own.reply
        return reply

    def _run(self, batch: Sequence[_Waiting]) -> None:
        try:
            replies = self._function([one.request for one in batch])
        except Exception as error:
            if len(batch) > 1:
                for one in batch:
                    self._run([one])
                return
            batch[0].error = error
            batch[0].done = True
            return
        for one, reply in zip(batch, replies, strict=True):
            one.reply = reply
            one.done = True
