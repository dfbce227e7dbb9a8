"""Pages that are generated when the documentation is built, and so never stale (a hook of MkDocs, see mkdocs.yml)."""

import difflib
import functools
import re
import sys
from pathlib import Path

from mkdocs.structure.files import File

ROOT = Path(__file__).resolve().parents[2]
COLUMNS = 100  # of the help texts


def on_files(files, config):
    """MkDocs calls this with the files of docs/; the generated pages join them."""
    sys.path.insert(0, str(ROOT))
    pages = {"index.md": home(), "changes.md": (ROOT / "CHANGELOG.md").read_text(),
             "reference/cli.md": command_line(), "reference/registries.md": registries()}
    for path, text in pages.items():
        files.append(File.generated(config, path, content=text))
    return files


def on_page_markdown(markdown, **others):
    """MkDocs calls this with each page's text: {{diff OLD NEW}} becomes what differs between two files of docs/examples."""
    return re.sub(r"{{diff (\S+) (\S+)}}", lambda found: diff(*found.groups()), markdown)


def diff(old, new) -> str:
    """What differs between two files of docs/examples, a line of context around it."""
    texts = [(ROOT / "docs" / "examples" / name).read_text().splitlines() for name in (old, new)]
    lines = list(difflib.unified_diff(*texts, n=1, lineterm=""))[3:]
    return "\n".join(" …" if line.startswith("@@") else line for line in lines)


def home() -> str:
    """The README, whose links are relative to the repository."""
    return (ROOT / "README.md").read_text().replace("](docs/", "](")


def command_line() -> str:
    """Every command's --help."""
    from hogwild.cli import main as hogwild
    from hogwild.experiments import __main__ as experiments
    from sparsecomm import cli as sparsecomm
    parts = ["# Command line\n\nWhat `--help` prints, generated from the commands themselves.\n"]
    for module in hogwild, sparsecomm, experiments:
        for k, (command, text) in enumerate(module.help_pages(columns=COLUMNS).items()):
            parts.append(f"{'###' if k else '##'} {command}\n\n```text\n{text.strip(chr(10))}\n```\n")
    return "\n".join(parts)


def registries() -> str:
    """Tables of the rules, schedules and losses with their hyper-parameters."""
    from hogwild.kernels.losses import LOSSES
    from hogwild.kernels.optim.rules import RULES
    from hogwild.kernels.optim.schedules import SCHEDULES
    tables = {"Rules": ("--rule", RULES), "Schedules": ("--schedule", SCHEDULES), "Losses": ("--loss", LOSSES)}
    parts = ["# Rules, schedules, losses\n\nGenerated from the registries. Hyper-parameters follow the name: "
             "`adam:b1=0.95,amsgrad=true`; durations of schedules are steps or epochs (`every=2epochs`).\n"]
    for title, (option, entries) in tables.items():
        parts.append(f"## {title}\n\nOption `{option}`.\n\n| name | hyper-parameters | |\n|---|---|---|")
        parts += [f"| `{name}` | {hyper_parameters(cls)} | {first_line(cls)} |" for name, cls in entries.items()]
        parts.append("")
    return "\n".join(parts)


def hyper_parameters(cls) -> str:
    """NAME or NAME=DEFAULT of each."""
    given = cls.keywords if isinstance(cls, functools.partial) else {}
    cls = getattr(cls, "func", cls)
    values = {**getattr(cls, "_field_defaults", {}), **given}
    return ", ".join(f"`{name}={values[name]:g}`" if isinstance(values.get(name), float) else
                     f"`{name}={values[name]}`" if name in values else f"`{name}`" for name in cls._fields)


def first_line(cls) -> str:
    """The first line of the docstring, as a cell of a table."""
    text = (getattr(cls, "func", cls).__doc__ or "").strip().split("\n")[0]
    return "" if text.startswith(f"{getattr(cls, 'func', cls).__name__}(") else text.replace("|", "\\|").replace("*", "\\*")
