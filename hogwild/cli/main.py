"""The `hogwild` command: train, evaluate, predict, inspect. Mistakes give one line and exit code 2."""

import inspect
import sys

from hogwild.cli import options
from hogwild.cli.arguments import defaults, parsed
from hogwild.errors import Terminated, UserError
from hogwild.training import console


def _parse(arguments):
    """The options as one of options' dataclasses; --help and unknown options end here."""
    app = {"evaluate": options.Evaluate, "predict": options.Predict, "inspect": options.Inspect}
    command = arguments[0] if arguments else "--help"
    if command in app:
        return parsed(f"hogwild {command}", app[command], arguments[1:])
    if command == "train" and arguments[1:2] == ["linear"]:
        return parsed("hogwild train linear", options.TrainLinear, arguments[2:],
                      default=defaults(options.TrainLinear, arguments[2:]), description=inspect.getdoc(options.TrainLinear))
    if command in ("-h", "--help") or (command == "train" and set(arguments[1:]) & {"-h", "--help"}):
        print(OVERVIEW)
        sys.exit(0 if arguments else 2)
    if command == "train":
        family = arguments[1] if len(arguments) > 1 else ""
        raise UserError(f"train needs a problem family, got '{family}': hogwild train linear [DATA]")
    raise UserError(f"unknown command '{command}': use train, evaluate, predict or inspect (hogwild --help)")


OVERVIEW = """usage: hogwild COMMAND …

Lock-free (Hogwild) training of sparse models.

  hogwild train linear [DATA]      train a sparse linear model (no DATA: on synthetic data)
  hogwild evaluate MODEL DATA      measure a saved model
  hogwild predict MODEL DATA       print predictions
  hogwild inspect DATA             describe a data file

hogwild COMMAND --help lists the options; for training: hogwild train linear --help.
Exit codes: 2 after a mistake, 130 after Ctrl-C, 143 after SIGTERM (training first saves what was learnt)."""


def command():
    """The `hogwild` command in a process of its own, ready 0.3 s sooner than `main` would be."""
    # Numba's first call imports scipy.linalg for its BLAS. No kernel here uses it: let that one import fail.
    from numba.core.registry import cpu_target
    blas = "scipy.linalg.cython_blas"
    sys.modules[blas] = None
    cpu_target.target_context.refresh()
    del sys.modules[blas]
    from hogwild.training.record import tell_of_compiling
    tell_of_compiling()
    main()


def main(arguments=None):
    """What the command does with `arguments`, by default those of the process."""
    from hogwild.cli import commands
    try:
        with console.output():
            commands.run(_parse(list(sys.argv[1:] if arguments is None else arguments)))
    except UserError as error:
        sys.exit(_fail(error))
    except MemoryError as error:
        sys.exit(_fail(f"not enough memory: {error}; a smaller --features, or fewer features in DATA, would do"))
    except KeyboardInterrupt as stop:
        terminated = isinstance(stop, Terminated)
        console.note(f"hogwild: {'terminated' if terminated else 'interrupted'}")
        sys.exit(143 if terminated else 130)
    except BrokenPipeError:  # the reader of our output, such as head, has gone
        sys.exit(1)
    except Exception as error:
        if not type(error).__module__.startswith("numba."):
            raise
        from hogwild.training import user_objects  # of a rule or loss of the user's, in what it was not tried in
        sys.exit(_fail(user_objects.said(error)))


def _fail(message) -> int:
    console.note("hogwild: " + " ".join(str(message).split("\n")))
    return 2
