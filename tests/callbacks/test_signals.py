"""Signals that wait: the second interrupt stops at once, whatever else has come; and the link to the last checkpoint."""

import signal
from itertools import permutations
from pathlib import Path

import pytest

from safe_rlhf_v.callbacks.run_keeper import _linked
from safe_rlhf_v.callbacks.signals import PendingSignals


@pytest.fixture
def signals() -> PendingSignals:
    return PendingSignals()


@pytest.mark.parametrize("order", sorted(set(permutations([signal.SIGTERM, signal.SIGINT, signal.SIGINT]))))
def test_the_second_interrupt_stops_at_once(
    signals: PendingSignals, order: tuple[signal.Signals, ...], capfd: pytest.CaptureFixture[str]
) -> None:
    last = len(order) - 1 - order[::-1].index(signal.SIGINT)
    for number in order[:last]:
        signals._note(number, None)
    assert signals.pending and capfd.readouterr().err.count("once more stops at once") == 1
    with pytest.raises(KeyboardInterrupt):
        signals._note(signal.SIGINT, None)


def test_a_new_run_counts_interrupts_anew(signals: PendingSignals) -> None:
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    signals._note(signal.SIGINT, None)
    try:
        signals.install()
        signals._note(signal.SIGINT, None)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def test_a_request_to_stop_outlives_a_signal_that_is_forwarded(signals: PendingSignals) -> None:
    calls: list[int] = []
    signals._handlers[signal.SIGUSR1] = lambda number, frame: calls.append(number)
    for stop, left in ((None, 0), (signal.SIGINT, signal.SIGINT)):
        signals._note(signal.SIGUSR1, None)
        if stop is not None:
            signals._note(stop, None)
        signals.forward(signal.SIGUSR1)
        assert signals.pending == left
    assert calls == [signal.SIGUSR1] * 2


@pytest.mark.parametrize("before", ["nothing", "file", "link", "link to a folder", "folder"])
def test_the_last_checkpoint_becomes_a_link_unless_it_is_a_folder(tmp_path: Path, before: str) -> None:
    last, file = tmp_path / "last.ckpt", tmp_path / "step=9.ckpt"
    file.write_text("new")
    if before == "folder":
        last.mkdir()
        (last / "shard").write_text("theirs")
    elif before == "file":
        last.write_text("old")
    elif before != "nothing":
        target = tmp_path / "old.ckpt"
        target.mkdir() if "folder" in before else target.write_text("old")
        last.symlink_to(target.name)
    assert _linked(file, last.name) == (before != "folder")
    if before == "folder":
        assert (last / "shard").read_text() == "theirs"
    else:
        assert last.is_symlink() and last.read_text() == "new"
    assert not list(tmp_path.glob(".last*"))
