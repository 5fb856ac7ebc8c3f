"""Requests gathered into batches: who runs with whom, what fails alone, and what a cancelled request leaves behind."""

import asyncio
import threading

import pytest

from safe_rlhf_v.inspecting.gathering import Gathered


class Recorded:
    """Doubles numbers and keeps the batches; a negative number fails the whole batch."""

    def __init__(self):
        self.batches = []
        self.running = 0

    def __call__(self, numbers):
        self.running += 1
        assert self.running == 1, "two batches at a time"
        assert threading.current_thread() is not threading.main_thread()
        self.batches.append(list(numbers))
        try:
            if min(numbers) < 0:
                raise ValueError(f"cannot take {min(numbers)}")
            return [2 * number for number in numbers]
        finally:
            self.running -= 1


def asked(gathered, requests):
    async def all_of_them():
        return await asyncio.gather(*(gathered.ask(*request) for request in requests), return_exceptions=True)

    return asyncio.run(all_of_them())


def test_everyone_gets_the_own_reply_in_batches():
    function = Recorded()
    gathered = Gathered(function, 4)
    assert asked(gathered, [(i,) for i in range(10)]) == [2 * i for i in range(10)]
    assert sorted(sum(function.batches, [])) == list(range(10))
    assert [len(batch) for batch in function.batches] == [4, 4, 2]
    assert asked(gathered, [(11,)]) == [22]  # in another event loop


def test_only_requests_of_one_kind_run_together():
    function = Recorded()
    asked(Gathered(function, 10), [(i, i % 2) for i in range(8)])
    assert sorted(map(sorted, function.batches)) == [[0, 2, 4, 6], [1, 3, 5, 7]]


def test_one_bad_request_fails_alone():
    function = Recorded()
    replies = asked(Gathered(function, 8), [(3,), (-1,), (4,)])
    assert replies[0] == 6 and replies[2] == 8
    assert isinstance(replies[1], ValueError) and "cannot take -1" in str(replies[1])
    assert function.batches == [[3, -1, 4], [3], [-1], [4]]


def test_a_function_that_forgets_a_reply_is_noticed():
    (reply,) = asked(Gathered(lambda requests: [], 8), [(1,)])
    assert isinstance(reply, ValueError)


def test_a_request_that_is_cancelled_is_not_run_and_stops_nobody():
    function = Recorded()
    gathered = Gathered(function, 1)
    proceed = threading.Event()

    def slow(numbers):
        assert proceed.wait(30)
        return function(numbers)

    gathered._function = slow

    async def scenario():
        tasks = [asyncio.create_task(gathered.ask(number)) for number in range(3)]
        while len(gathered._waiting) != 2:
            await asyncio.sleep(0.001)
        tasks[1].cancel()
        with pytest.raises(asyncio.CancelledError):
            await tasks[1]
        proceed.set()
        return await tasks[0], await tasks[2]

    assert asyncio.run(scenario()) == (0, 4)
    assert function.batches == [[0], [2]] and not gathered._waiting
