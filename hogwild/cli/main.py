"""The `hogwild` command: train, evaluate, predict, recommend, inspect. Mistakes give one line and exit code 2."""

import sys

from hogwild.cli import options, pages
from hogwild.cli.arguments import meant, parsed
from hogwild.cli.declared import defaults
from hogwild.errors import Terminated, UserError
from hogwild.families import registry
from hogwild.training import console

COMMANDS = {"evaluate": options.Evaluate, "predict": options.Predict, "recommend": options.Recommend,
            "inspect": options.Inspect}
NOTES = ("hogwild COMMAND --help lists the options; for training: hogwild train linear --help.",
         "Exit codes: 2 after a mistake, 130 after Ctrl-C, 143 after SIGTERM (training first saves what was learnt).")


def overview() -> str:
    """What `hogwild --help` prints."""
    training = {f"hogwild train {name} {entry.data}": entry.summary for name, entry in registry.FAMILIES.items()}
    return pages.overview("hogwild COMMAND …", "Lock-free (Hogwild) training of sparse models.", {
        **training, "hogwild evaluate MODEL DATA": "measure a saved model", "hogwild predict MODEL DATA": "print predictions",
        "hogwild recommend MODEL": "print the best items for users (of train mf)",
        "hogwild inspect DATA": "describe a data file"}, *NOTES)


def help_pages(columns=80) -> dict[str, str]:
    """The whole --help of the command and of each sub-command, by how it is called."""
    commands = [[], *(["train", name] for name in registry.FAMILIES), *([name] for name in COMMANDS)]
    return {" ".join(["hogwild", *words]): pages.printed(main, words, columns) for words in commands}


def _do(arguments):
    """What the arguments ask for; --help ends here. Raises UserError."""
    command = arguments[0] if arguments else "--help"
    if command == "--version":
        print(pages.versions())
    elif command in ("-h", "--help") or (command == "train" and arguments[1:2] in (["-h"], ["--help"])):
        print(overview())
        sys.exit(0 if arguments else 2)
    elif command == "train":
        _train(arguments[1:])
    elif command in COMMANDS:
        given = parsed(f"hogwild {command}", COMMANDS[command], arguments[1:])
        from hogwild.cli import commands  # with it come the kernels
        getattr(commands, command)(given)
    else:
        raise UserError(f"unknown command '{command}': use train, {', '.join(list(COMMANDS)[:-1])} or {list(COMMANDS)[-1]}"
                        f"{meant(command, ['train', *COMMANDS])} (hogwild --help)")


def _train(arguments):
    """hogwild train FAMILY …"""
    name = arguments[0] if arguments else ""
    if name not in registry.FAMILIES:
        raise UserError(f"train needs a problem family, one of {', '.join(registry.FAMILIES)}, got '{name}'"
                        f"{meant(name, registry.FAMILIES)}: hogwild train linear [DATA]")
    family = registry.family(name)
    given = parsed(f"hogwild train {name}", family.options, arguments[1:], defaults(family.options, arguments[1:]))
    from hogwild.cli import train
    train.train_family(family, given)


def command():
    """The `hogwild` command in a process of its own, ready 0.3 s sooner than `main` would be."""
    # Numba's first call imports scipy.linalg for its BLAS. No kernel here uses it: let that one import fail.
    from numba.core.registry import cpu_target
    blas = "scipy.linalg.cython_blas"
    sys.modules[blas] = None
    cpu_target.target_context.refresh()
    del sys.modules[blas]
    from hogwild.kernels.compiler.cache import announce
    announce()
    main()


def main(arguments=None):
    """What the command does with `arguments`, by default those of the process."""
    try:
        with console.output():
            _do(list(sys.argv[1:] if arguments is None else arguments))
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
