"""Commands in processes of their own that share the imports: a server imports once, and every command is a fork of it."""

import multiprocessing
import os
import runpy
import shlex
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

IMPORTS = "safe_rlhf_v.demo.imports"
ENVIRONMENT = {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
"""One thread each: networks this small gain little from more, and threads that wait for one another burn time."""
_seconds: dict[int, float] = {}


class CommandError(RuntimeError):
    """A command that did not end with status 0.

    Attributes:
        problems: The last lines of its output.
    """

    def __init__(self, message: str, problems: Sequence[str]) -> None:
        """Create the error.

        Args:
            message: Which command failed, and where its output is.
            problems: The last lines of its output.
        """
        super().__init__(message)
        self.problems = tuple(problems)


class Job:
    """A running ``python -m safe_rlhf_v`` command.

    Attributes:
        command: Its command line without the program.
        log: File of its output.
        seconds: CPU-seconds it took, once it ended.
    """

    def __init__(self, command: Sequence[str], log: Path) -> None:
        """Start the command.

        Args:
            command: Command line without the program.
            log: File of its output; replaced.
        """
        self.command = tuple(command)
        self.log = log
        self.seconds = 0.0
        log.parent.mkdir(parents=True, exist_ok=True)
        context = _context()
        self._receiver, sender = context.Pipe(duplex=False)
        self._process = context.Process(target=_work, args=(self.command, str(log), sender))
        with _environment():
            self._process.start()
        sender.close()

    @property
    def sentinel(self) -> int:
        """Handle to wait for."""
        return int(self._process.sentinel)

    def stop(self) -> None:
        """Ask the command to end, and wait for it."""
        self._process.terminate()
        self._process.join()

    def finish(self) -> None:
        """Wait for the end.

        Raises:
            CommandError: If the status is not 0.
        """
        self._process.join()
        with suppress(EOFError):  # of a process that was killed
            server, imports, self.seconds = self._receiver.recv()
            _seconds[server] = imports
            _seconds[self._process.pid or 0] = self.seconds
        if status := self._process.exitcode:
            lines = self.log.read_text(errors="replace").splitlines()[-20:]
            ended = f"signal {-status}" if status < 0 else f"exit status {status}"
            raise CommandError(f"{self.command[0]} failed ({ended}); all of its output: {self.log}", lines)


def execute(*commands: Sequence[str], logs: Path) -> None:
    """Run ``python -m safe_rlhf_v`` commands side by side.

    Args:
        commands: Command lines without the program.
        logs: Folder for the output of each command.

    Raises:
        CommandError: If one of them fails; the others are stopped.
    """
    names = (f"{command[0]}-{i}-{time.time_ns()}" for i, command in enumerate(commands))
    for _ in finished([Job(command, logs / f"{name}.log") for command, name in zip(commands, names, strict=True)]):
        pass


def finished(running: list[Job], every: float | None = None, tick: Callable[[], None] = lambda: None) -> Iterator[Job]:
    """Jobs as they end; each is removed from ``running``, to which others may be added meanwhile.

    Args:
        running: Jobs.
        every: Seconds between two calls of ``tick``; ``None`` for no calls.
        tick: What is done meanwhile.

    Raises:
        CommandError: If a job fails; the others are stopped.
    """
    try:
        while running:
            ended = wait([job.sentinel for job in running], every)
            if not ended:
                tick()
            for job in [job for job in running if job.sentinel in ended]:
                running.remove(job)
                job.finish()
                yield job
    finally:
        for job in running:
            job.stop()


def cpu_seconds() -> float:
    """CPU-seconds of all commands that ended, and of their imports."""
    return sum(_seconds.values())


def _context() -> Any:
    """How processes start: forked from a server with the imports where the platform does that safely, else anew."""
    if sys.platform != "linux":
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([IMPORTS])
    return context


@contextmanager
def _environment() -> Iterator[None]:
    """:data:`ENVIRONMENT` while a process is started: the first start takes it into the server.

    Ctrl-C reaches every process of a terminal. Started processes ignore it: this one stops them, each in its own way.
    """
    before = {name: os.environ.get(name) for name in ENVIRONMENT}
    os.environ.update(ENVIRONMENT)
    in_main = threading.current_thread() is threading.main_thread()  # elsewhere Python takes no handler
    handler = signal.signal(signal.SIGINT, signal.SIG_IGN) if in_main else None
    try:
        yield
    finally:
        if in_main:
            signal.signal(signal.SIGINT, signal.SIG_DFL if handler is None else handler)
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _work(command: tuple[str, ...], log: str, sender: "Connection[Any, Any]") -> None:
    """Run one command in this process, its output in a file; sends the server, the CPU-seconds of its imports, and its own."""
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
    for stream in (1, 2):
        os.dup2(file, stream)
    print(f"$ python -m safe_rlhf_v {shlex.join(command)}", flush=True)
    sys.argv = ["python -m safe_rlhf_v", *command]
    forked = IMPORTS in sys.modules
    try:
        runpy.run_module("safe_rlhf_v", run_name="__main__", alter_sys=True)
    finally:
        server, imports = (os.getppid(), sys.modules[IMPORTS].SECONDS) if forked else (0, 0.0)
        sender.send((server, imports, time.process_time()))
