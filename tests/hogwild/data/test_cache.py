"""The cache of parsed files: what is not as it was written, or may not be, is parsed again."""

import os
import resource
import time
import zlib

import numpy as np
import pytest

from hogwild.data import cache as store
from hogwild.data import dataset, formats
from hogwild.data.schema import Chunk
from hogwild.errors import UserError

TEXT = b"1 1:0.5 3:2\n# none\n-1\n1 2:3 7:1e-3\n"


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """The cache folder of one test, in which files count as settled at once: their change time cannot be set back."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(store, "SETTLED_NS", -1)
    return tmp_path / "cache" / "hogwild-sparsecomm" / "data"


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "data.svm"
    path.write_bytes(TEXT)
    return path


def folders(cache):
    return [entry for entry in cache.iterdir() if entry.is_dir()] if cache.exists() else []


def never(*_, **__):
    raise AssertionError("this should not have been called")


def assert_read(dataset):
    assert dataset.indptr.tolist() == [0, 2, 2, 4] and dataset.indices.tolist() == [0, 2, 1, 6]
    assert dataset.values.tolist() == np.float32([0.5, 2, 3, 1e-3]).tolist() and dataset.labels.tolist() == [1, -1, 1]
    assert dataset.n_features == 7


def test_second_read_neither_parses_nor_hashes(cache, path, monkeypatch):
    assert_read(dataset.read(path))
    monkeypatch.setattr(formats.Source, "chunks", never)
    monkeypatch.setattr(store.hashlib, "file_digest", never)
    monkeypatch.setattr(store, "_checksums", never)  # of files that have not changed since they were verified
    assert_read(dataset.read(path))
    with pytest.raises(AssertionError):
        dataset.read(path, zero_based=True)


def test_same_content_elsewhere_is_not_parsed_again(cache, path, tmp_path, monkeypatch):
    dataset.read(path)
    (tmp_path / "copy").write_bytes(TEXT)
    monkeypatch.setattr(formats.Source, "chunks", never)
    assert dataset.read(tmp_path / "copy").source == str(tmp_path / "copy")
    (tmp_path / "copy.csv").write_bytes(TEXT)  # the same bytes, another format
    with pytest.raises(AssertionError):
        dataset.read(tmp_path / "copy.csv")


@pytest.mark.parametrize("settled", [True, False])
def test_changed_content_is_noticed(cache, path, settled, monkeypatch):
    """In place, its size, inode and modification time as before; a fresh one even within a tick of its change time."""
    monkeypatch.setattr(store, "SETTLED_NS", -1 if settled else 2 * 10**9)
    stamp = os.stat(path).st_mtime_ns
    dataset.read(path)
    if not settled:
        monkeypatch.setattr(store, "_identity", lambda status: "as before")
    time.sleep(0.01)  # over the system's tick
    with open(path, "r+b") as file:
        file.write(TEXT.replace(b"0.5", b"4.5"))
    os.utime(path, ns=(stamp, stamp))
    assert dataset.read(path).values[0] == 4.5


@pytest.mark.parametrize("settled", [True, False])
def test_a_file_that_changes_while_it_is_read_is_not_published(cache, path, settled, monkeypatch):
    monkeypatch.setattr(store, "SETTLED_NS", -1 if settled else 2 * 10**9)
    if not settled:
        monkeypatch.setattr(store, "_identity", lambda status: "as before")
    chunks = formats.Source.chunks

    def changes(source):
        path.write_bytes(TEXT.replace(b"0.5", b"4.5"))
        return chunks(source)
    monkeypatch.setattr(formats.Source, "chunks", changes)
    published = []
    monkeypatch.setattr(store, "_publish", lambda *_: published.append(1))
    with pytest.raises(UserError, match="changed while it was read"):
        dataset.read(path)
    assert folders(cache) == [] and not published


def test_a_file_that_vanishes_while_it_is_read(cache, path, monkeypatch):
    write = store._write
    monkeypatch.setattr(store, "_write", lambda *arguments: (write(*arguments), path.unlink()))
    with pytest.raises(UserError, match="changed while it was read"):
        dataset.read(path)


@pytest.mark.parametrize("damage", ["values", "meta.json", "labels", "not json"])
def test_damaged_cache_is_rebuilt(cache, path, damage):
    dataset.read(path)
    [folder] = folders(cache)
    if damage == "not json":
        (folder / "meta.json").write_text("{")
    elif damage == "values":
        (folder / damage).write_bytes((folder / damage).read_bytes()[:-1])
    else:
        (folder / damage).unlink()
    assert_read(dataset.read(path))
    assert folders(cache) == [folder] and set(os.listdir(folder)) == {*dataset.ARRAYS, "meta.json", "verified"}
    assert_read(dataset.read(path))


@pytest.mark.parametrize("name", [*dataset.ARRAYS, "ids", "meta.json"])
def test_a_flipped_bit_in_the_cache_is_noticed(cache, path, name):
    """In every byte of every file; in the indices it ended in a segmentation fault."""
    if name == "ids":
        path.write_bytes(TEXT.replace(b"7:", b"70000000:"))
    wanted = dataset.read(path, cache=False)
    for byte in range(0, 1 << 12, 1 if name in dataset.ARRAYS else 7):
        dataset.read(path)
        [folder] = folders(cache)
        stamp = os.stat(folder / name).st_mtime_ns
        with open(folder / name, "r+b") as file:
            content = file.read()
            if byte >= len(content):
                break
            file.seek(byte)
            file.write(bytes([content[byte] ^ 1 << byte % 8]))
        os.utime(folder / name, ns=(stamp, stamp))
        found = dataset.read(path)
        for field in (*dataset.ARRAYS, "ids"):
            assert np.array_equal(getattr(found, field), getattr(wanted, field)), (name, byte)
        assert (found.width, found.schema, found.names) == (wanted.width, wanted.schema, wanted.names)
    assert byte > 10


def test_a_new_start_of_the_machine_verifies_again(cache, path, monkeypatch):
    dataset.read(path)
    [folder] = folders(cache)
    (folder / "verified").write_text("of another boot")
    summed, crc32 = [], zlib.crc32
    monkeypatch.setattr(store.zlib, "crc32", lambda x, *start: summed.append(len(x)) or crc32(x, *start))
    assert_read(dataset.read(path))
    assert sum(summed) > 88
    summed.clear()
    assert_read(dataset.read(path))
    assert len(summed) == 1  # of meta.json


def test_a_cache_that_others_may_write_to_is_not_trusted(cache, path):
    dataset.read(path)
    cache.chmod(0o777)
    with pytest.raises(UserError, match="may be written by other users.*--no-cache"):
        dataset.read(path)
    assert_read(dataset.read(path, cache=False))


def test_two_processes_may_race(cache, path, monkeypatch):
    write = store._write

    def slower(source, folder):  # another process publishes the same data meanwhile
        write(source, folder)
        monkeypatch.setattr(store, "_write", write)
        dataset.read(path)

    monkeypatch.setattr(store, "_write", slower)
    assert_read(dataset.read(path))
    assert len(folders(cache)) == 1


@pytest.mark.parametrize("error", [KeyboardInterrupt, UserError])
def test_interrupted_parse_leaves_nothing(cache, path, monkeypatch, error):
    def interrupted(source):
        yield Chunk(*(np.zeros(1, dtype) for dtype in (np.float64, np.int64, np.uint32, np.float32)))
        raise error("stop")

    monkeypatch.setattr(formats.Source, "chunks", interrupted)
    with pytest.raises(error):
        dataset.read(path)
    assert folders(cache) == []


def test_old_entries_are_removed(cache, path, tmp_path):
    dataset.read(path)
    for entry in cache.iterdir():
        os.utime(entry, (time.time() - 40 * 24 * 3600,) * 2)
    (tmp_path / "other").write_bytes(b"1 1:1\n")
    dataset.read(tmp_path / "other")
    assert len(folders(cache)) == 1 and len(list(cache.glob("*.seen"))) == 1


@pytest.mark.parametrize("use_cache, remedy", [(True, "XDG_CACHE_HOME"), (False, "TMPDIR")])
def test_full_disk(cache, tmp_path, use_cache, remedy):
    (tmp_path / "big").write_bytes(b"1 1:1 2:1 3:1\n" * 2000)
    dataset.read(tmp_path / "big", cache=False)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10000, hard))  # the nearest thing to a full disk that needs no root
    try:
        with pytest.raises(UserError, match=f"cannot be written there .*{remedy}") as caught:
            dataset.read(tmp_path / "big", cache=use_cache)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert "\n" not in str(caught.value) and (not use_cache or str(caught.value).startswith(str(cache)))
    assert not use_cache or folders(cache) == []
