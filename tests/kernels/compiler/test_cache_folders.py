"""Which folders of cached files are trusted, and which are removed."""

import fcntl
import os
import subprocess
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from hogwild.kernels.compiler import cache, cache_folders

OLD = time.time() - 2 * cache_folders.STALE_SECONDS


@pytest.fixture
def base(tmp_path, monkeypatch):
    """An empty $NUMBA_CACHE_DIR, and another place for everything else."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path / "numba"))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()
    (tmp_path / "home").touch()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    cache_folders.say.cache_clear()
    for each in (cache_folders._private, cache.cache_root):
        each.cache_clear()
    yield tmp_path / "numba"
    for each in (cache_folders._private, cache.cache_root):
        each.cache_clear()


def aged(folder):
    """A file in the folder, nobody having used it for long."""
    (folder / "file").write_text("content")
    os.utime(folder, (OLD, OLD))
    return folder


def test_only_what_we_made_is_removed(base):
    checkout = base / "hogwild-sparsecomm"
    checkout.mkdir(parents=True)
    aged(checkout)
    ours, held, recent = (cache_folders.own_folder(base / f"hogwild-{name}") for name in ("ours", "held", "recent"))
    aged(ours)
    cache_folders.held_folder(held)
    aged(held)
    link = base / "hogwild-link"
    link.symlink_to(checkout)
    before = aged(cache_folders.own_folder(cache.cache_root() / "before"))
    new = cache.cache_folder.__wrapped__("new")
    root = new.parent
    assert root.parent == base and all(path.stat().st_mode & 0o777 == 0o700 for path in (root, new))
    assert sorted(base.iterdir()) == sorted([checkout, held, recent, link, root]) and not before.exists()
    assert (checkout / "file").read_text() == (held / "file").read_text() == "content"


def test_what_lies_in_a_folder_of_ours_is_removed_by_age(tmp_path):
    root = cache_folders.own_folder(tmp_path / "data")
    old, new, file = root / "old", root / "new", root / "old.seen"
    old.mkdir(), new.mkdir(), file.touch()
    aged(old)
    for path in file, root / cache_folders.MARKER:
        os.utime(path, (OLD, OLD))
    cache_folders.remove_stale(root)
    assert sorted(root.iterdir()) == sorted([root / cache_folders.MARKER, new])
    (root / cache_folders.MARKER).unlink()
    aged(new)
    cache_folders.remove_stale(root)
    assert new.is_dir()


def test_a_folder_that_another_process_holds_is_kept(tmp_path):
    held = aged(cache_folders.own_folder(tmp_path / "held"))
    program = ("import sys; from hogwild.kernels.compiler.cache_folders import held_folder; "
               "held_folder(sys.argv[1]); print(1, flush=True); input()")
    with subprocess.Popen([sys.executable, "-c", program, held], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        process.stdout.read(1)
        os.utime(held, (OLD, OLD))
        cache_folders.remove_stale(tmp_path)
        assert (held / "file").exists()
        process.communicate(b"\n")
    cache_folders.remove_stale(tmp_path)
    assert not held.exists()


def test_many_that_clean_up_at_once_do_not_disturb_each_other(base, monkeypatch):
    base.mkdir()
    for k in range(200):
        folder = base / f"hogwild-{k:016x}"
        folder.mkdir(0o700)
        (folder / cache_folders.MARKER).touch()
        aged(folder)
    together = threading.Barrier(8)

    def clean(_):
        together.wait()
        return cache.cache_folder.__wrapped__("new")
    with ThreadPoolExecutor(8) as pool:
        assert len(set(pool.map(clean, range(8)))) == 1
    assert len(list(base.iterdir())) == 1


def test_a_folder_removed_as_it_is_taken_is_made_again(tmp_path, monkeypatch):
    folder, lock = tmp_path / "folder", fcntl.flock

    def removed_first(file, how):
        if how == fcntl.LOCK_SH:
            monkeypatch.setattr(fcntl, "flock", lock)
            aged(folder)
            cache_folders.remove_stale(tmp_path)
            assert not folder.exists()
        lock(file, how)
    monkeypatch.setattr(fcntl, "flock", removed_first)
    assert cache_folders.held_folder(folder) == folder and (folder / cache_folders.MARKER).exists()


def untrusted(kind, path, monkeypatch):
    """Make at `path` what is not to be trusted."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if kind == "file":
        return path.touch()
    elsewhere = path.with_name("elsewhere")
    elsewhere.mkdir(0o700)
    if kind == "link":
        return path.symlink_to(elsewhere)
    elsewhere.rename(path)
    if kind == "writable":
        path.chmod(0o777)
    elif kind == "group":
        path.chmod(0o770)
    else:
        own = Path.lstat
        monkeypatch.setattr(Path, "lstat", lambda each: _of_another(own(each)) if each == path else own(each))


def _of_another(status):
    return os.stat_result((*status[:4], status.st_uid + 1, *status[5:]))


KINDS = {"link": "symbolic link", "writable": "other users", "group": "other users", "foreign": "another user",
         "file": "not a folder"}


@pytest.mark.parametrize("kind", KINDS)
def test_folders_of_others_are_refused(base, tmp_path, monkeypatch, capsys, kind):
    """That of the kernels, whose index is unpickled, and the one in the temporary folder, that anybody may have made."""
    name = "hogwild-kernels"
    untrusted(kind, base / name, monkeypatch)
    with pytest.raises(OSError, match=KINDS[kind]):
        cache_folders.own_folder(base / name)
    assert cache.cache_root() == tmp_path / "xdg" / "hogwild-sparsecomm" / "kernels" / name
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and str(base / name) in said and KINDS[kind] in said

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "temporary"))  # the temporary folder itself
    mine = tmp_path / "temporary" / f"hogwild-{os.getuid()}"
    untrusted(kind, mine, monkeypatch)
    private = cache_folders.user_cache()
    assert private.parent == mine.parent and private not in (mine, mine.with_name("elsewhere"))
    assert private.stat().st_mode & 0o777 == 0o700 and cache_folders.user_cache() == private
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and str(mine) in said and "XDG_CACHE_HOME" in said
