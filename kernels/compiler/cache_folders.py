"""Folders of cached files: only those that are the user's own are trusted, and only what this project made is removed."""

import atexit
import contextlib
import fcntl
import functools
import os
import secrets
import shutil
import stat
import sys
import tempfile
import time
from pathlib import Path

MARKER = ".made-by-hogwild-sparsecomm"  # in every folder that `own_folder` has made
STALE_SECONDS = 30 * 24 * 3600
_held = []  # open markers of the folders in use: their locks last as long as this process


def own_folder(path) -> Path:
    """The folder `path`, made where there is none, with mode 0700 and a marker in it.

    Raises OSError where `path` is not a folder of this user's to which nobody else may write: anybody may have put there
    what lies in it.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        path.mkdir(0o700)
    except FileExistsError:
        if wrong := _distrust(path):
            raise PermissionError(f"{path} {wrong}") from None
    else:
        (path / MARKER).touch()
    return path


def held_folder(path) -> Path:
    """`own_folder(path)`, which `remove_stale` of no process removes while this one lives. Raises OSError."""
    while True:
        folder = own_folder(path)
        try:
            os.utime(folder)
            marker = open(folder / MARKER, "rb")
        except FileNotFoundError:
            if folder.exists():  # made by somebody else: nothing removes it
                return folder
            continue  # removed just now
        with contextlib.suppress(OSError):  # a file system without locks: there, nothing is removed
            fcntl.flock(marker, fcntl.LOCK_SH)
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(marker.fileno()), os.stat(folder / MARKER)):
                _held.append(marker)
                return folder
        marker.close()


def remove_stale(base, pattern="*"):
    """Remove the folders in `base` that `own_folder` has made, and the rest too where it has made `base`, unless used within
    30 days. Several processes may do so at once.
    """
    within_ours = _ours(base)
    for old in base.glob(pattern):
        with contextlib.suppress(OSError), contextlib.ExitStack() as stack:
            ours = _ours(old)
            if old.name == MARKER or not _stale(old) or not (ours or within_ours):
                continue
            if ours:
                marker = stack.enter_context(open(old / MARKER, "rb"))
                fcntl.flock(marker, fcntl.LOCK_EX | fcntl.LOCK_NB)  # an error where a process holds it
                if not _stale(old):
                    continue
            aside = base / f"hogwild-removed-{secrets.token_hex(8)}"
            old.rename(aside)  # one process gets it, and none meets half of it
            shutil.rmtree(aside) if aside.is_dir() and not aside.is_symlink() else aside.unlink()


def user_cache() -> Path:
    """The user's cache folder of this project (XDG_CACHE_HOME or ~/.cache); a temporary one where that is read-only."""
    for base in (os.environ.get("XDG_CACHE_HOME"), os.path.expanduser("~/.cache"), tempfile.gettempdir()):
        if not base or not os.path.isabs(base):
            continue
        try:
            if base == tempfile.gettempdir():  # where anybody may have made it
                folder = own_folder(Path(base) / f"hogwild-{os.getuid()}")
            else:
                folder = Path(base) / "hogwild-sparsecomm"
                folder.mkdir(parents=True, exist_ok=True)
            tempfile.TemporaryFile(dir=folder).close()
        except OSError as error:
            reason = error
            continue
        return folder
    return private_folder(reason)


@functools.cache
def _private() -> Path:
    folder, process = Path(tempfile.mkdtemp(prefix="hogwild-")), os.getpid()
    atexit.register(lambda: os.getpid() == process and shutil.rmtree(folder, ignore_errors=True))
    return folder


def is_temporary(path) -> bool:
    """Whether the folder ends with this process, as `private_folder` does."""
    return _private.cache_info().currsize > 0 and Path(path).is_relative_to(_private())


def private_folder(reason) -> Path:
    """A temporary folder that ends with this process, and a line on stderr, with the reason. Raises OSError."""
    try:
        folder = _private()
    except OSError:
        raise OSError("no writable folder for the cache: set XDG_CACHE_HOME to one") from None
    say(f"{reason}: for this run the cache is in {folder}; set XDG_CACHE_HOME to a folder of your own to keep it")
    return folder


@functools.cache
def say(line):
    """A line on stderr, once."""
    with contextlib.suppress(OSError, ValueError):
        print(f"hogwild: {line}", file=sys.stderr)


def _distrust(path) -> str:
    """What is wrong with a folder, or empty."""
    status = path.lstat()
    if not stat.S_ISDIR(status.st_mode):
        return "is a symbolic link" if stat.S_ISLNK(status.st_mode) else "is not a folder"
    if status.st_uid != os.geteuid():
        return f"belongs to another user (number {status.st_uid})"
    return "may be written by other users (chmod go-w it if it is yours)" if status.st_mode & 0o022 else ""


def _ours(path) -> bool:
    """Whether `own_folder` has made this folder."""
    try:
        return not _distrust(path) and stat.S_ISREG((path / MARKER).lstat().st_mode)
    except OSError:
        return False


def _stale(path) -> bool:
    return time.time() - path.lstat().st_mtime > STALE_SECONDS
