"""python -m hogwild: the `hogwild` command."""

from hogwild.cli.main import command

if __name__ == "__main__":
    command()
