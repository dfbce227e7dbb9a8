"""python -m sparsecomm: the `sparsecomm` command."""

from sparsecomm.cli import command

if __name__ == "__main__":
    command()
