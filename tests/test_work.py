"""Work spread over threads: every result in its place, errors where they belong, and cores that are shared."""

import threading

import pytest

from anykmeans import _fork, _work
from anykmeans._work import Work


@pytest.fixture
def four_cores(monkeypatch):
    """As many as the machine had, whatever it has."""
    monkeypatch.setattr(_work, "_cores", lambda: 4)


def work():
    return Work(1 << 20, 4, host=True, max_bytes=None)


def threads_of(one, items=32):
    """How many threads took items, which all wait for a while."""
    seen, wait = set(), threading.Event()

    def take(item):
        seen.add(threading.get_ident())
        wait.wait(0.002)
        return item * item

    assert one.map(take, range(items)) == [item * item for item in range(items)]
    return len(seen)


def test_the_caller_works_and_others_help(four_cores):
    with work() as one:
        assert one.threads == 4
        assert 2 <= threads_of(one) <= 4
        assert threads_of(one, items=1) == 1


def test_fits_at_the_same_time_share_the_cores(four_cores):
    with work() as one, work():
        assert threads_of(one) <= 2
        with work(), work():
            assert threads_of(one) == 1
    with work() as one:
        assert threads_of(one) >= 2


def test_one_thread_without_blas_leaves_blas_alone():
    for blas, users in [(True, 1), (False, 0)]:
        with Work(100, 4, host=True, max_bytes=None, blas=blas) as one:
            assert one.threads == 1
            assert _work._one_blas_thread.users == users


def test_an_error_in_any_thread_is_raised(four_cores):
    def fail(item):
        threading.Event().wait(0.002)
        if item in (5, 6, 7):
            raise ValueError(f"item {item}")

    with work() as one:
        with pytest.raises(ValueError, match="item"):
            one.map(fail, range(40))
        assert one.map(str, range(3)) == ["0", "1", "2"]  # and work goes on


def test_a_fork_waits_for_first_calls_of_others_and_keeps_them_out():
    calls, order = _fork._FirstCalls(), []
    inside, leave = threading.Event(), threading.Event()

    def call(name):
        with calls, calls:  # as what is imported may import
            order.append(name)
            inside.set()
            leave.wait()

    first = threading.Thread(target=call, args=("first",))
    first.start()
    inside.wait()
    threading.Timer(0.05, leave.set).start()
    calls.wait()
    first.join(1)
    second = threading.Thread(target=call, args=("second",))
    second.start()
    second.join(0.05)
    order.append("fork")
    calls.go_on()
    second.join()
    assert order == ["first", "fork", "second"]


def test_a_fork_waits_neither_for_its_own_thread_nor_for_ever(monkeypatch):
    calls, leave = _fork._FirstCalls(), threading.Event()
    monkeypatch.setattr(_fork, "LONGEST", 0.05)

    def call():
        with calls:
            leave.wait()

    other = threading.Thread(target=call)
    other.start()
    with calls:
        calls.wait()
        calls.go_on()
    calls.wait()
    calls.forget()  # as the child does
    with calls:
        pass
    leave.set()
    other.join()
    calls.wait()
    calls.go_on()
