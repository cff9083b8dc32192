"""What the host does in a call does not grow with the number of problems; nothing is timed, all is counted."""

import os

import pytest

torch = pytest.importorskip("torch", reason="PyTorch is not installed")
pytest.importorskip("triton", reason="Triton is not installed")
if os.environ.get("TRITON_INTERPRET") == "1":
    pytest.skip("TRITON_INTERPRET is 1: kernels are not launched", allow_module_level=True)

from benchmarks.gpu import host  # noqa: E402
from benchmarks.gpu.rows import Row  # noqa: E402

ON = "cuda" if torch.cuda.is_available() else "cpu"


def made(b, *, weighted=False, **options):
    """Operations, launches and waits of a call on `b` problems."""
    if weighted:
        options["sample_weight"] = torch.ones((b, 20 + host.SPARE)[b == 1 :], device=ON)
    with host.idle() as launched:
        return host.counted(host.call(Row("", b, 0, 0, 20, "float32", 5), ON, **options), launched)


@pytest.mark.parametrize(
    ("options", "operations", "each", "most"),
    [
        ({}, 66, 0, 6),
        ({"tol": 1e-4}, 89, 0, 8),
        ({"tol": 1e-4, "weighted": True}, 116, 5, 11),
        ({"init": "random", "n_init": 1}, 75, 5, 5),
    ],
)
def test_further_problems_cost_hardly_anything(options, operations, each, most):
    two, ten = made(2, **options), made(10, **options)
    if ON == "cpu":  # a device counts copies to it, and which labels there are
        assert two[0] <= operations
    assert ten[0] - two[0] <= 8 * each
    assert ten[1] == two[1]
    assert ten[2] == two[2] <= most


def test_restarts_wait_for_the_device_as_one_does():
    one, ten = (made(1, init="random", n_init=n) for n in (1, 10))
    assert ten[1:] == one[1:]
    assert ten[0] - one[0] <= 9 * 6


def test_what_is_launched_again_is_what_was_launched(monkeypatch):
    from triton.runtime.jit import JITFunction

    from anykmeans.kernels.triton import passes

    first, again = [], []

    def run(self, *arguments, grid, warmup, **options):
        named = {name: each for name, each in options.items() if name in self.arg_names}
        told = self.signature.bind(*arguments, **named).arguments.values()
        plain = [each.data_ptr() if hasattr(each, "data_ptr") else each for each in told]
        first.append((self.__name__, plain))
        return host.Made(lambda *them: again.append((self.__name__, list(them))))

    def thrice(self, made):
        for _ in range(3):
            self._pass()
        self._state[:, :2] = torch.tensor([1, made])  # it has stopped

    with host.idle(), monkeypatch.context() as patch:  # undone first
        patch.setattr(JITFunction, "run", run)
        patch.setattr(passes.Passes, "_run", thrice)
        host.call(Row("", 2, 0, 0, 20, "float32", 5), ON)()
    begin = [name for name, _ in first].index("prepare")
    one = first[begin : begin + 6]
    assert one[-1][0] == "advance"
    assert again == [*one, *one, *one[:3]]  # and the labels of the centroids returned


def test_the_table(capsys):
    assert host.main(["8", "--device", ON, "--repeats", "1"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 3
