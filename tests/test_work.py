"""Work spread over threads: every result in its place, errors where they belong, and cores that are shared."""

import collections
import math
import os
import threading

import numpy as np
import pytest
import threadpoolctl

from anykmeans import (
    KMeans,
    MiniBatchKMeans,
    _fork,
    _threads,
    _work,
    assign,
    kernels,
    kmeans,
    kmeans_plusplus,
)
from anykmeans._work import Work


@pytest.fixture
def four_cores(monkeypatch):
    """As many as the machine had, whatever it has."""
    monkeypatch.setattr(_work, "cores", lambda: 4)


def work():
    return Work(1 << 20, 4, host=True, max_bytes=None)


def threads_of(one, items=32, least=1):
    """How many threads took items, which all wait for a while, and for the `least` to have come."""
    seen, came = set(), threading.Event()

    def take(item):
        seen.add(threading.get_ident())
        if len(seen) >= least:
            came.set()
        assert came.wait(30)
        threading.Event().wait(0.002)
        return item * item

    assert one.map(take, range(items)) == [item * item for item in range(items)]
    return len(seen)


def test_the_caller_works_and_others_help(four_cores):
    with work() as one:
        assert one.threads == 4
        assert threads_of(one, least=2) <= 4
        assert threads_of(one, items=1) == 1


def test_fits_at_the_same_time_share_the_cores(four_cores):
    with work() as one, work():
        assert threads_of(one) <= 2
        with work(), work():
            assert threads_of(one) == 1
    with work() as one:
        assert threads_of(one, least=2) <= 4


def test_one_thread_without_blas_leaves_blas_alone():
    for blas, users in [(True, 1), (False, 0)]:
        with Work(100, 4, host=True, max_bytes=None, blas=blas) as one:
            assert one.threads == 1
            assert _threads.one_blas_thread.users == users


def test_an_error_in_any_thread_is_raised(four_cores):
    def fail(item):
        threading.Event().wait(0.002)
        if item in (5, 6, 7):
            raise ValueError(f"item {item}")

    with work() as one:
        with pytest.raises(ValueError, match="item"):
            one.map(fail, range(40))
        assert one.map(str, range(3)) == ["0", "1", "2"]  # and work goes on


def test_no_more_threads_than_wanted_and_none_goes_on(four_cores):
    """Not even while somebody presses Ctrl-C: what threads write to is the caller's."""
    running, most, count, two = [0], [0], threading.Lock(), threading.Event()

    def take(item):
        with count:
            running[0] += 1
            most[0] = max(most[0], running[0])
        if running[0] >= 2:
            two.set()
        assert two.wait(30)
        threading.Event().wait(0.002)
        with count:
            running[0] -= 1
        if item == 3:
            raise KeyboardInterrupt

    with Work(1 << 20, 4, host=True, max_bytes=None, threads=3) as one:
        with pytest.raises(KeyboardInterrupt):
            one.map(take, range(60))
        assert running == [0]
        assert most[0] <= 3


def test_where_no_thread_can_be_started_the_caller_works(four_cores, monkeypatch):
    def full(*_how):
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(_threads._thread, "start_new_thread", full)
    with work() as one:
        assert threads_of(one) == 1


def test_waiting_for_a_thread_outlasts_interruptions():
    class Busy:
        tries = 0

        def acquire(self):
            self.tries += 1
            if self.tries < 3:
                raise KeyboardInterrupt

    busy, errors = Busy(), collections.deque()
    _threads._wait_for(busy, errors)
    assert busy.tries == 3
    assert list(map(type, errors)) == [KeyboardInterrupt] * 2


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


def of_size(n=1 << 20, **options):
    return Work(n, 4, host=True, max_bytes=None, **options)


@pytest.fixture
def four_cpus(monkeypatch):
    """A machine with four cores, and nobody who has said anything."""
    monkeypatch.setattr(_threads, "_quota", lambda: 99)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(os, "process_cpu_count", lambda: 4, raising=False)
    with threadpoolctl.threadpool_limits(8):
        yield


def test_what_bounds_the_threads(four_cpus, monkeypatch):
    assert of_size().threads == 4
    assert of_size(n=100).threads == 1
    for said, wanted in [("3", 3), ("2,4", 2), ("16", 4), ("", 4), ("0", 4), ("many", 4)]:
        monkeypatch.setenv("OMP_NUM_THREADS", said)
        assert of_size().threads == wanted
    monkeypatch.delenv("OMP_NUM_THREADS")
    for quota, wanted in [(2, 2), (math.inf, 4)]:
        monkeypatch.setattr(_threads, "_quota", lambda quota=quota: quota)
        assert of_size().threads == wanted
    monkeypatch.setattr(os, "process_cpu_count", lambda: 3, raising=False)
    assert of_size().threads == 3
    for threads in [1, 2, 7]:  # who says so in the call is the last to be asked
        assert of_size(threads=threads).threads == threads
        assert of_size(n=100, threads=threads).threads == 1


def test_threadpool_limits_are_obeyed_and_ours_is_not_taken_for_one(four_cpus):
    for limit, wanted in [(1, 1), (3, 3), (9, 4)]:
        with threadpoolctl.threadpool_limits(limit):
            assert of_size().threads == wanted
            with of_size(), of_size(threads=2):  # BLAS has one thread now, and we have said so
                assert of_size().threads == wanted
            assert of_size().threads == wanted
    assert of_size().threads == 4
    found = []

    def fit():  # OpenMP's limits are those of a thread
        with threadpoolctl.threadpool_limits(8, user_api="openmp"):
            found.append(of_size().threads)

    with of_size():
        other = threading.Thread(target=fit)
        other.start()
        other.join()
    assert found == [4]
    assert of_size().threads == 4


@pytest.mark.parametrize("name", ["numba", "cpu"])
def test_a_call_obeys(four_cpus, monkeypatch, setting, name):
    """Under a limit of one, and with `threads=1`, no thread is started; results are the same."""
    if kernels.why_not(name, np.ones((2, 2))) is not None:
        pytest.skip(kernels.why_not(name, np.ones((2, 2))))
    x = np.random.default_rng(0).normal(size=(1500, 4))
    setting(spread=0)
    setting(tile=1 << 10)  # that there be several tiles
    setting(at_once=0, few=0)
    started = []
    start = _threads._thread.start_new_thread
    monkeypatch.setattr(
        _threads._thread, "start_new_thread", lambda *how: started.append(1) or start(*how)
    )

    def everything(threads):
        model = KMeans(4, random_state=0, threads=threads, kernel=name).fit(x)
        batches = MiniBatchKMeans(4, random_state=0, threads=threads, kernel=name, tol=1e-3)
        batches.fit(x).partial_fit(x)
        results = [kmeans(x, 4, init=init, rng=0, n_init=1, threads=threads, kernel=name).centroids
                   for init in ("k-means++", "k-means||", "random")]  # fmt: skip
        for each in (model, batches):
            results += [each.predict(x), each.transform(x), each.score(x), each.cluster_centers_]
        results += [
            *assign(x, x[:4], threads=threads),
            *kmeans_plusplus(x, 4, random_state=0, threads=threads),
        ]
        return [np.asarray(each).tobytes() for each in results]

    wanted = everything(3)
    assert started
    started.clear()
    assert everything(1) == wanted
    with threadpoolctl.threadpool_limits(1):
        assert everything(None) == wanted
    assert started == []
    assert everything(None) == wanted
    assert started


def test_no_limit_is_read_for_small_work(monkeypatch):
    def cores():
        raise AssertionError("read")

    monkeypatch.setattr(_work, "cores", cores)
    assert of_size(n=1000).threads == 1


GROUPS = {  # what /proc/self/cgroup says, the files that are there, and the cores
    "version 2": ("0::/a/b", {"a/cpu.max": "250000 100000", "a/b/cpu.max": "max 100000"}, 3),
    "the inner one": ("0::/a/b", {"a/cpu.max": "400000 100000", "a/b/cpu.max": "50000 100000"}, 1),
    "seen from inside": ("0::/docker/1f2e", {"cpu.max": "200000 100000"}, 2),
    "outside its namespace": ("0::/../other", {"cpu.max": "200000 100000"}, 2),
    "version 1": (
        "5:memory:/m\n4:cpu,cpuacct:/a\n0::/",
        {"cpu,cpuacct/a/cpu.cfs_quota_us": "150000", "cpu,cpuacct/a/cpu.cfs_period_us": "50000"},
        3,
    ),
    "version 1, above": (
        "1:cpu:/a/b",
        {
            "cpu/a/b/cpu.cfs_quota_us": "-1",
            "cpu/a/b/cpu.cfs_period_us": "100000",
            "cpu/cpu.cfs_quota_us": "100000",
            "cpu/cpu.cfs_period_us": "100000",
        },
        1,
    ),
    "both": ("1:cpuset:/\n0::/a", {"unified/a/cpu.max": "100000 100000"}, 1),
    "no limit": ("0::/", {"cpu.max": "max 100000"}, math.inf),
    "no files": ("0::/a", {}, math.inf),
    "nonsense": ("0::/a", {"a/cpu.max": "many few", "cpu.max": "100000 0"}, math.inf),
}


@pytest.mark.parametrize("case", GROUPS)
def test_the_share_of_a_container(tmp_path, case):
    said, files, wanted = GROUPS[case]
    (tmp_path / "cgroup").write_text(said + "\n")
    for name, text in files.items():
        path = tmp_path / "mounted" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n")
    assert _threads._quota(str(tmp_path / "cgroup"), str(tmp_path / "mounted")) == wanted
    assert _threads._quota(str(tmp_path / "none"), str(tmp_path / "mounted")) == math.inf


@pytest.mark.parametrize(
    ("threads", "error"), [(0, ValueError), (-1, ValueError), (1.5, TypeError), (True, TypeError)]
)
def test_threads_that_cannot_be(threads, error):
    x = np.arange(12.0).reshape(6, 2)
    fitted = KMeans(2, random_state=0).fit(x).set_params(threads=threads)
    for call in (
        lambda: kmeans(x, 2, threads=threads),
        lambda: assign(x, x[:2], threads=threads),
        lambda: kmeans_plusplus(x, 2, threads=threads),
        lambda: KMeans(2, threads=threads).fit(x),
        lambda: MiniBatchKMeans(2, threads=threads).fit(x),
        lambda: MiniBatchKMeans(2, threads=threads).partial_fit(x),
        lambda: fitted.predict(x),
        lambda: fitted.transform(x),
        lambda: fitted.score(x),
    ):
        with pytest.raises(error, match=rf"^`threads` must be .*; got .*{threads}"):
            call()


def test_the_setting_says_how_many_threads_where_a_call_does_not(four_cores, setting):
    assert Work(1 << 18, 4, host=True, max_bytes=None).threads == 4
    setting(threads=3)
    assert Work(1 << 18, 4, host=True, max_bytes=None).threads == 3
    assert Work(1 << 18, 4, host=True, max_bytes=None, threads=2).threads == 2
