"""The handshake: ranks that are alike pass, and who is odd is named on every rank."""

import json

import pytest
from mpi import mpirun, ranks

from sparsecomm.wire.handshake import difference, own_facts

PROGRAM = """
import json, sys
from mpi4py import MPI
from hogwild.errors import UserError
from sparsecomm.wire.handshake import handshake
world = MPI.COMM_WORLD
for facts in json.loads(sys.argv[1]):
    try:
        handshake(world, {**facts.get("all", {}), **facts.get(str(world.rank), {})})
        said = "fine"
    except UserError as error:
        said = str(error)
    every = world.gather(said)
    if world.rank == 0:
        print(json.dumps(every), flush=True)
"""
HOW = ". Start every rank with the same installation, data and options"


def said(n, *cases):
    ended = mpirun(n, "-c", PROGRAM, json.dumps(cases))
    assert ended.code == 0, ended.err
    return [json.loads(line) for line in ended.out.splitlines()]


@ranks
def test_ranks_that_are_alike_pass(n):
    assert said(n, {"all": {"parameters": 7, "names": "größer"}}, {}) == [["fine"] * n] * 2


def test_the_odd_rank_is_named_on_every_rank_with_both_values():
    alike, long, missing, two, all_odd = said(
        3, {"all": {"parameters": 5}, "2": {"numpy": "0.1"}}, {"1": {"names": "x" * 5000}}, {"0": {"extra": 1}},
        {"0": {"dtype": "a", "parameters": 1}, "1": {"dtype": "b", "parameters": 2}, "2": {"dtype": "b", "parameters": 1}},
        {"0": {"seed": 0}, "1": {"seed": 1}, "2": {"seed": 2}})
    numpy = own_facts()["numpy"]
    assert alike == [f"the ranks do not agree: numpy is 0.1 on rank 2, but {numpy} on ranks 0, 1{HOW}"] * 3
    assert long == [f"the ranks do not agree: names is {'x' * 5000} on rank 1, but nothing on ranks 0, 2{HOW}"] * 3
    assert missing == [f"the ranks do not agree: extra is 1 on rank 0, but nothing on ranks 1, 2{HOW}"] * 3
    assert two == ["the ranks do not agree: dtype is a on rank 0, but b on ranks 1, 2; "
                   f"parameters is 2 on rank 1, but 1 on ranks 0, 2{HOW}"] * 3
    assert all_odd == [f"the ranks do not agree: seed is 1 on rank 1 and 2 on rank 2, but 0 on rank 0{HOW}"] * 3


@pytest.mark.parametrize("values, text", [
    ([1, 1, 1, 2], "f is 2 on rank 3, but 1 on the others"), ([2, 1], "f is 1 on rank 1, but 2 on rank 0"), ([3, 3], ""),
    ([1, 1, 1, 2, 3, 2], "f is 2 on ranks 3, 5 and 3 on rank 4, but 1 on the others"),
    (["a", 1, 1, 1], "f is a on rank 0, but 1 on the others")])
def test_majority_is_what_is_usual(values, text):
    assert difference("f", values) == text


def test_own_facts_are_those_of_this_process():
    import sys

    import numba
    import numpy as np
    facts = own_facts()
    assert facts["numpy"] == np.__version__ and facts["numba"] == numba.__version__ and facts["byte order"] == sys.byteorder
    assert facts["protocol"] == 2 and facts["hogwild-sparsecomm"] != "not installed"
    assert ("torch" in facts) == ("torch" in sys.modules)
