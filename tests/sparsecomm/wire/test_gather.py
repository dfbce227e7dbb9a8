"""Named arrays between ranks: they come as they were sent, in chunks too, and a mistake on rank 0 is every rank's."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays, scalar_dtypes
from mpi import mpirun

from hogwild.errors import UserError
from sparsecomm.wire import gather

NUMBERS = scalar_dtypes().filter(lambda dtype: dtype.kind in "biufc")
ARRAYS = NUMBERS.flatmap(lambda dtype: arrays(dtype, array_shapes(min_dims=0, min_side=0)))


@given(st.dictionaries(st.text(), ARRAYS, max_size=4))
def test_flat_and_back(held):
    back = gather.named(gather.flat(held))
    assert list(back) == list(held)
    for name, x in held.items():
        assert back[name].dtype == x.dtype and back[name].shape == x.shape and back[name].tobytes() == x.tobytes()
        assert back[name].flags.writeable


PROGRAM = """
import numpy as np
from mpi4py import MPI
from hogwild.errors import UserError
from sparsecomm.wire import gather
gather.CHUNK = 64
comm = MPI.COMM_WORLD
def own(r):
    return {"rank": np.array(r), "many": np.arange(100 * r, dtype=np.float32)}
def same(a, b):
    return a.keys() == b.keys() and all(np.array_equal(a[k], b[k]) and a[k].dtype == b[k].dtype for k in a)
everyone = gather.gathered(comm, own(comm.rank))
assert len(everyone) == (comm.size if comm.rank == 0 else 0) and all(same(x, own(r)) for r, x in enumerate(everyone))
assert same(gather.scattered(comm, everyone), own(comm.rank))
assert same(gather.broadcast_arrays(comm, own(7 + comm.rank)), own(7))
assert gather.broadcast_json(comm, {"a": [comm.rank, float("inf"), "ü"]}) == {"a": [0, float("inf"), "ü"]}
assert gather.on_root(comm, lambda: comm.rank + 5) == (5 if comm.rank == 0 else None)
def wrong():
    raise UserError(f"full, says rank {comm.rank}")
try:
    gather.on_root(comm, wrong)
except UserError as error:
    assert str(error) == "full, says rank 0"
    print("told", flush=True)
"""


@pytest.mark.parametrize("n", [1, 2, 5])
def test_between_ranks(n):
    ended = mpirun(n, "-c", PROGRAM)
    assert ended.code == 0, ended.err
    assert ended.out.split() == ["told"] * n


def test_it_keeps_what_is_not_contiguous():
    x = np.arange(12.0).reshape(3, 4).T[::2]
    assert np.array_equal(gather.named(gather.flat({"x": x}))["x"], x)


@pytest.mark.parametrize("size", [-1, 7, 2**62])
def test_a_size_that_nothing_can_have_takes_no_memory(size):
    with pytest.raises(UserError, match="rank 3 announces"):
        gather._room(size, 3)
