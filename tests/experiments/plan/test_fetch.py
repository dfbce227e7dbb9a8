"""Data sets from a server on this machine: what is put where, and that an error is one line and leaves no file."""

import errno
import hashlib
import io
import lzma
import math
import os
import tarfile
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from sklearn.datasets import load_svmlight_file

from hogwild.experiments.__main__ import main
from hogwild.experiments.plan import convert, fetch, published
from hogwild.experiments.plan.published import DataSet, File

BODY = bytes(range(256)) * 400


class Server(BaseHTTPRequestHandler):
    """Sends BODY as /good; what else is asked for goes wrong in the way that its name says."""

    asked = []

    def do_GET(self):
        self.asked.append(self.path)
        if self.path == "/absent":
            return self.send_error(404)
        if self.path == "/silent":
            self.server.stop.wait(30)
            return None
        self.send_response(200)
        self.send_header("Content-Length", str(len(BODY)))
        self.end_headers()
        return self.wfile.write({"/other": BODY[::-1], "/cut": BODY[:5000]}.get(self.path, BODY))

    def log_message(self, *words):
        pass


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    Server.asked.clear()
    with ThreadingHTTPServer(("127.0.0.1", 0), Server) as made:
        made.stop = threading.Event()
        thread = threading.Thread(target=made.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        yield f"http://127.0.0.1:{made.server_port}/"
        made.stop.set()
        made.shutdown()
        thread.join()


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOGWILD_DATA", str(tmp_path / "data"))
    return tmp_path / "data"


def registered(monkeypatch, name, *urls, convert="unchanged"):
    """A data set of that name, a file of it from each URL, whose content should be BODY."""
    files = tuple(File(url, hashlib.sha256(BODY).hexdigest(), f"{k}.bin") for k, url in enumerate(urls))
    monkeypatch.setitem(published.SETS, name, DataSet("t", tuple(file.name for file in files), files, 0.1, convert, "free"))


def left(home):
    return sorted(str(path.relative_to(home)) for path in home.rglob("*")) if home.is_dir() else []


def said(capsys):
    """What went to standard error, without the lines on progress."""
    return [line for line in capsys.readouterr().err.splitlines() if line.startswith("experiments: ")]


def test_a_set_is_downloaded_once(server, home, monkeypatch, capsys):
    registered(monkeypatch, "toy", f"{server}good", f"{server}good")
    assert published.missing("toy") == "no data set toy: python -m hogwild.experiments fetch toy"
    assert main(["fetch"]) == 0 and "toy: missing, a download of 0.1 MB" in capsys.readouterr().out
    assert main(["fetch", "toy"]) == 0
    assert left(home) == ["toy", "toy/0.bin", "toy/1.bin"] and (home / "toy" / "1.bin").read_bytes() == BODY
    out, _ = capsys.readouterr()
    assert out == f"toy: 2 files in {home / 'toy'}; licence: free\n" and published.missing("toy") is None
    assert main(["fetch", "toy"]) == 0 and len(Server.asked) == 2
    assert main(["fetch"]) == 0 and "toy: present\n" in capsys.readouterr().out


@pytest.mark.parametrize("what, words", [
    ("other", "is not the file that was published"), ("cut", "cannot be downloaded: the connection was cut"),
    ("absent", "cannot be downloaded: the server answered 404"), ("silent", "cannot be downloaded: no answer within 0.3 s")])
def test_a_download_that_goes_wrong_is_one_line_and_leaves_nothing(server, home, monkeypatch, capsys, what, words):
    monkeypatch.setattr(fetch, "PATIENCE", 0.3)
    registered(monkeypatch, "toy", f"{server}good", f"{server}{what}")
    registered(monkeypatch, "next", f"{server}good")
    assert main(["fetch", "toy", "next"]) == 2
    line, = said(capsys)
    assert line.startswith(f"experiments: toy: {server}{what} ") and words in line and "--downloads" in line
    assert left(home) == ["next", "next/0.bin"]  # the sets after it are fetched


def test_without_a_network(home, monkeypatch, capsys):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    registered(monkeypatch, "toy", "http://127.0.0.1:9/good")  # discard: nothing listens there
    assert main(["fetch", "toy"]) == 2 and left(home) == []
    line, = said(capsys)
    assert "no connection to the server; check the network" in line


def test_a_disk_that_fills_up_leaves_nothing(server, home, monkeypatch, capsys):
    def half(paths, folder):
        (folder / "0.bin").write_bytes(BODY[:9])
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "0.bin")
    monkeypatch.setattr(convert, "half", half, raising=False)
    registered(monkeypatch, "toy", f"{server}good", convert="half")
    assert main(["fetch", "toy"]) == 2 and left(home) == []
    line, = said(capsys)
    assert f"toy: cannot write to {home}: No space left on device" in line and "HOGWILD_DATA" in line
    home.rmdir()
    home.touch()  # a file in place of the folder
    assert main(["fetch", "toy"]) == 2 and len(said(capsys)) == 1


def test_a_fetch_that_was_interrupted_or_killed_leaves_nothing_that_counts(server, home, monkeypatch, capsys):
    def stop(paths, folder):
        raise KeyboardInterrupt
    monkeypatch.setattr(convert, "stop", stop, raising=False)
    registered(monkeypatch, "toy", f"{server}good", convert="stop")
    assert main(["fetch", "toy"]) == 130 and left(home) == []
    (home / fetch.PART / "toy").mkdir(parents=True)  # as kill -9 leaves it
    (home / fetch.PART / "toy" / "0.bin").touch()
    assert published.missing("toy")
    registered(monkeypatch, "toy", f"{server}good")
    with fetch._alone(home):
        assert main(["fetch", "toy"]) == 2 and "another fetch is at work there" in said(capsys)[-1]
    assert main(["fetch", "toy"]) == 0 and left(home) == ["toy", "toy/0.bin"]


def test_files_that_were_downloaded_by_hand(home, tmp_path, monkeypatch, capsys):
    registered(monkeypatch, "toy", "http://127.0.0.1:9/good")
    for content in None, BODY[:-1]:
        if content:
            (tmp_path / "0.bin").write_bytes(content)
        assert main(["fetch", "toy", "--downloads", str(tmp_path)]) == 2
        line, = said(capsys)
        assert "http://127.0.0.1:9/good" in line and str(tmp_path / "0.bin") in line and not left(home)
    (tmp_path / "0.bin").write_bytes(BODY)
    assert main(["fetch", "toy", "--downloads", str(tmp_path)]) == 0
    assert left(home) == ["toy", "toy/0.bin"] and (tmp_path / "0.bin").exists()


def test_an_unknown_set(capsys):
    assert main(["fetch", "mnits"]) == 2
    assert "no data set 'mnits': choose from mnist, imdb" in said(capsys)[0]


def archive(path, texts):
    with tarfile.open(path, "w:gz") as tar:
        for name, text in texts.items():
            member = tarfile.TarInfo(name)
            member.size = len(text)
            tar.addfile(member, io.BytesIO(text))
    return path


def rows(path, n_features):
    """[(label, {feature: value})] of a converted file."""
    with lzma.open(path) as text:
        X, y = load_svmlight_file(text, n_features=n_features, zero_based=False)
    return [(label, {int(k) + 1: v for k, v in zip(row.indices, row.data)}) for label, row in zip(y, X)]


def test_reviews_become_counts_of_words(tmp_path):
    """By hand: b (in 3 texts) is feature 1, a (in 2) 2; the rest is in one training text, or of one letter."""
    texts = {"train/pos/0_9.txt": "AA bb, bb<br />bb x", "train/neg/0_2.txt": "bb zz caf\u00e9", "train/neg/1_1.txt": "aa-bb",
             "train/unsup/0_0.txt": "zz", "test/pos/0_8.txt": "zz aa br", "test/neg/0_3.txt": "?"}
    path = archive(tmp_path / "a", {f"aclImdb/{name}": text.encode() for name, text in texts.items()})
    convert.imdb([path], tmp_path)
    read = rows(tmp_path / "imdb-bow.train.svm.xz", 2)
    assert sorted(read, key=str) == sorted([(1, {1: 3, 2: 1}), (-1, {1: 1}), (-1, {1: 1, 2: 1})], key=str)
    assert sorted(rows(tmp_path / "imdb-bow.test.svm.xz", 2), key=str) == sorted([(1, {2: 1}), (-1, {})], key=str)


def test_messages_become_weighted_words_without_headers(tmp_path):
    texts = {"train/comp.graphics/1": "Subject: bb\n\naa aa bb", "train/sci.space/2": "Lines: 1\n\naa cc",
             "train/alt.atheism/3": "cc\n\nbb", "train/misc.forsale/4": "cc\n\ncc", "test/rec.autos/5": "a\n\naa dd\n\nbb"}
    path = archive(tmp_path / "a", {f"20news-bydate-{name}": text.encode() for name, text in texts.items()})
    convert.newsgroups([path], tmp_path)
    long = 1 + math.log(2)  # all three words are in two of four texts, so that their weights are alike
    expected = [(1, {1: long / math.hypot(long, 1), 2: 1 / math.hypot(long, 1)}), (1, {1: 0.5**0.5, 3: 0.5**0.5}),
                (-1, {2: 1}), (-1, {3: 1})]
    read = rows(tmp_path / "20news-comp-sci.train.svm.xz", 3)
    for label, values in expected:
        assert any(label == y and got == pytest.approx(values, abs=1e-6) for y, got in read)
    assert rows(tmp_path / "20news-comp-sci.test.svm.xz", 3) == [(-1, pytest.approx({1: 0.5**0.5, 2: 0.5**0.5}, abs=1e-6))]


def test_what_is_registered():
    """URLs and sums are those of scikit-learn, where it has the set; names of files are those that the programs read."""
    from sklearn.datasets import _kddcup99, _twenty_newsgroups
    for name, theirs in {"20newsgroups": _twenty_newsgroups.ARCHIVE, "kddcup99": _kddcup99.ARCHIVE_10_PERCENT}.items():
        assert [file[:2] for file in published.SETS[name].downloads] == [(theirs.url, theirs.checksum)]
    for name, one in published.SETS.items():
        assert one.licence and one.files and callable(getattr(convert, one.convert)), name
        assert all(file.url.startswith("https://") and len(bytes.fromhex(file.sha256)) == 32 for file in one.downloads)


@pytest.mark.parametrize("name, opened", [("ptb", lzma.open), ("kddcup99", open)])
def test_sums_of_copies_that_were_not_fetched(data_set, name, opened):
    for file, copy in zip(published.SETS[name].downloads, published.SETS[name].files):
        with opened(data_set(name) / copy, "rb") as content:
            assert hashlib.sha256(content.read()).hexdigest() == file.sha256


@pytest.mark.parametrize("env, expected", [
    ({"HOGWILD_DATA": "/x/../y"}, "/y"), ({"HOGWILD_DATA": "~/z", "HOME": "/home/me"}, "/home/me/z"),
    ({"HOGWILD_DATA": "", "XDG_CACHE_HOME": "/c"}, "/c/hogwild-sparsecomm/datasets"),
    ({"XDG_CACHE_HOME": "relative", "HOME": "/home/me"}, "/home/me/.cache/hogwild-sparsecomm/datasets")])
def test_the_folder(monkeypatch, env, expected):
    for name in ("HOGWILD_DATA", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    assert str(published.folder()) == expected
