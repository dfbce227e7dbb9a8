"""Several runs of the `sparsecomm` command, one after the other in the same ranks: to start them takes the longest.

`{rank}` in an argument is each rank's own number.
"""

import json
import sys

from mpi import mpirun

MARK = "---- end of run:"


def in_turn(n, *runs, **options) -> list[tuple[str, str]]:
    """(what rank 0 printed, the mistake that every rank raised, or "") of each run, a list of arguments, on n ranks."""
    text = json.dumps([[str(a) for a in run] for run in runs])
    ended = mpirun(n, "-m", "turns", text, **options)
    assert ended.code == 0 and not ended.left, ended.err
    parts = ended.out.split(MARK)
    said = [json.loads(part.split("\n")[0]) for part in parts[1:]]
    assert len(said) == len(runs), ended.out
    return [(part.partition("\n")[2] if k else part, mistake) for k, (part, mistake) in enumerate(zip(parts, said))]


def main():
    from mpi4py import MPI

    from hogwild.errors import UserError
    from sparsecomm import cli
    for run in json.loads(sys.argv[1]):
        mistake = ""
        try:
            cli.main([argument.replace("{rank}", str(MPI.COMM_WORLD.rank)) for argument in run])
        except UserError as error:
            mistake = str(error)
        told = MPI.COMM_WORLD.allgather(mistake)
        assert told == [mistake] * len(told), told
        print(MARK + json.dumps(mistake), flush=True)


if __name__ == "__main__":
    main()
