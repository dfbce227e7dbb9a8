"""`python -m hogwild.experiments fetch`: the published data sets, downloaded, checked and converted for the programs."""

import contextlib
import fcntl
import os
import shutil
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

from hogwild.cli.arguments import parsed
from hogwild.errors import UserError
from hogwild.experiments.plan import convert
from hogwild.experiments.plan.published import SETS, folder, missing
from hogwild.training import console

PATIENCE = 30.0  # seconds that a server may be silent
PART = ".fetch"  # in the folder of the sets: what is not complete yet


@dataclass
class Fetch:
    """Download data sets for the experiments and benchmarks. Without names: list them, with licence and size.

    They are put into the folder that HOGWILD_DATA names, else into ~/.cache/hogwild-sparsecomm/datasets.

    Examples:
      python -m hogwild.experiments fetch mnist imdb
      HOGWILD_DATA=/data python -m hogwild.experiments fetch ptb
      python -m hogwild.experiments fetch imdb --downloads ~/Downloads
    """

    names: Annotated[Positional[list[str]], arg(metavar="NAME")] = field(default_factory=list)
    """Names of data sets."""
    downloads: Annotated[Path | None, arg(metavar="FOLDER")] = None
    """Folder of the publishers' files that you downloaded yourself, for a machine without a network."""


def main(arguments) -> int:
    """`experiments fetch`; the exit code."""
    options = parsed("python -m hogwild.experiments fetch", Fetch, arguments)
    if unknown := [name for name in options.names if name not in SETS]:
        raise UserError(f"no data set '{unknown[0]}': choose from {', '.join(SETS)}")
    if not options.names:
        listed()
    failed = False
    for name in dict.fromkeys(options.names):
        try:
            print(fetched(name, options.downloads), flush=True)
        except UserError as error:  # the other sets may have better luck
            console.note(f"experiments: {error}")
            failed = True
    return 2 if failed else 0


def listed():
    """Print the sets and what is known of them."""
    print(f"data sets in {folder()} (HOGWILD_DATA chooses another folder)")
    for name, one in SETS.items():
        state = f"missing, a download of {one.megabytes:g} MB" if missing(name) else "present"
        print(f"\n{name}: {state}\n  {one.title}\n  licence: {one.licence}")
        where = {file.url.rpartition("/")[0] for file in one.downloads}
        print(f"  from {', '.join(where) if len(one.downloads) > 1 else one.downloads[0].url}")


def fetched(name, downloads=None) -> str:
    """Put the set `name` into `folder()`, where it is not there; a line on it.

    downloads: folder of the publisher's files, in place of a download. Raises UserError; then no file is there that was
    not before.
    """
    home, one = folder() / name, SETS[name]
    if not missing(name):
        return f"{name}: present in {home}"
    try:
        with _alone(folder()) as part:
            paths = [_file(name, file, part, downloads) for file in one.downloads]
            console.note(f"{name}: converting")
            (made := part / name).mkdir()
            getattr(convert, one.convert)(paths, made)
            home.mkdir(exist_ok=True)
            for file in one.files:
                os.replace(made / file, home / file)
    except OSError as error:
        raise UserError(f"{name}: cannot write to {folder()}: {error.strerror or error}; free some space, or set "
                        "HOGWILD_DATA to another folder") from None
    except ImportError as error:
        raise UserError(f"{name}: {error.name} is not installed: pip install '.[experiments]'") from None
    files = "1 file" if len(one.files) == 1 else f"{len(one.files)} files"
    return f"{name}: {files} in {home}; licence: {one.licence}"


@contextlib.contextmanager
def _alone(home):
    """A new folder in `home`, which is made; it is removed at the end, and at the next start where this process is killed."""
    home.mkdir(parents=True, exist_ok=True)
    held, part = os.open(home, os.O_RDONLY), home / PART
    try:
        try:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"{home}: another fetch is at work there; wait for it, or stop it") from None
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir()
        try:
            yield part
        finally:
            shutil.rmtree(part, ignore_errors=True)
    finally:
        os.close(held)


def _file(name, file, part, downloads) -> Path:
    """The publisher's file, its checksum verified. Raises UserError and OSError."""
    import pooch
    import requests
    if downloads is not None:
        path = downloads.expanduser() / file.name
        if not path.is_file():
            raise UserError(f"{name}: no {path}; download it from {file.url}")
        if (got := pooch.file_hash(str(path))) != file.sha256:
            raise UserError(f"{path}: has the sha256 {got}, the published file {file.sha256}; download it again from "
                            f"{file.url}")
        return path
    console.note(f"{name}: downloading {file.url}")
    pooch.get_logger().setLevel("WARNING")
    get = pooch.HTTPDownloader(progressbar=sys.stderr is not None and sys.stderr.isatty(), chunk_size=1 << 16,
                               timeout=PATIENCE, headers={"Accept-Encoding": "identity"})
    try:
        return Path(pooch.retrieve(file.url, f"sha256:{file.sha256}", file.name, part, downloader=get))
    except requests.RequestException as error:
        raise UserError(f"{name}: {file.url} cannot be downloaded: {_reason(error)}; check the network, or download it "
                        "yourself and name its folder with --downloads") from None
    except ValueError:  # pooch's word for a wrong checksum
        raise UserError(f"{name}: {file.url} is not the file that was published (another sha256 than {file.sha256}); try "
                        "again, or download it yourself and name its folder with --downloads") from None


def _reason(error) -> str:
    """What went wrong with a request, in a few words."""
    import requests
    if error.response is not None:
        return f"the server answered {error.response.status_code} {error.response.reason}"
    if isinstance(error, requests.Timeout) or "timed out" in str(error):
        return f"no answer within {PATIENCE:g} s"
    if isinstance(error, requests.exceptions.ChunkedEncodingError):
        return "the connection was cut"
    return "no connection to the server" if isinstance(error, requests.ConnectionError) else str(error)
