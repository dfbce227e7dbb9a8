"""The tagger: column files, the CRF against all sequences written out, F1 against counted chunks, and its mistakes."""

import itertools

import jobs
import numpy as np
import pytest
import torch
from mpi import mpirun
from torch.nn import functional as F

from hogwild.errors import UserError
from hogwild.training import model_files
from hogwild.training.stopping import Stop, Stopper
from sparsecomm.data import tagged
from sparsecomm.run.evaluate import measured
from sparsecomm.tasks.options import TaggerOptions
from sparsecomm.tasks.registry import build
from sparsecomm.tasks.tagger import chunk_f1, scheme_of
from sparsecomm.tasks.taggers import Crf

pytestmark = pytest.mark.usefixtures("one_thread")


def written(path, text):
    path.write_text(text)
    return path


def test_columns(tmp_path):
    """Blank lines in a row, a document's head and a last line without its end; I- at a chunk's beginning is B-."""
    text = "-DOCSTART- -X- O\n\n\nU.N. NNP I-ORG\nin IN O\r\n"
    text += "Rio NNP B-LOC\nBonn NNP I-ORG\n \n\nBonn NNP I-LOC\nRio NNP I-LOC"
    read = tagged.read(written(tmp_path / "a", text))
    assert read.sentences(read.words) == [["U.N.", "in", "Rio", "Bonn"], ["Bonn", "Rio"]]
    assert read.sentences(read.tags) == [["B-ORG", "O", "B-LOC", "B-ORG"], ["B-LOC", "I-LOC"]]
    assert len(read.notes) == 1 and read.notes[0].endswith("B-…: 3")
    other = tagged.read(written(tmp_path / "b", "a I-X\nb E-X\n"))  # of another scheme: as they are
    assert other.tags == ["I-X", "E-X"] and not other.notes


def test_crf_is_the_sum_over_all_sequences():
    """Loss and best sequence of sentences of 1 to 4 words in one batch, by enumeration in float64."""
    torch.manual_seed(0)
    crf, lengths = Crf(3).double(), torch.tensor([4, 1, 2])
    for p in crf.parameters():
        torch.nn.init.normal_(p)
    z, tags = torch.randn(4, 3, 3, dtype=torch.float64), torch.randint(3, (4, 3))
    follows, first, last = (p.detach().numpy() for p in (crf.follows, crf.first, crf.last))
    want, best = 0.0, crf.best(z, lengths)
    for b, n in enumerate(lengths.tolist()):
        def score(path, b=b, n=n):
            pairs = sum(follows[i, j] for i, j in itertools.pairwise(path))
            return first[path[0]] + last[path[-1]] + pairs + sum(z[t, b, path[t]].item() for t in range(n))
        scores = {path: score(path) for path in itertools.product(range(3), repeat=n)}
        want += np.logaddexp.reduce(list(scores.values())) - scores[tuple(tags[:n, b].tolist())]
        assert tuple(best[:n, b].tolist()) == max(scores, key=scores.get)
    assert crf.loss(z, tags, lengths).item() == pytest.approx(want, rel=1e-9)


def test_loss_is_each_sentence_alone(tmp_path):
    """Padding changes nothing: an epoch's losses are those of the sentences one by one, over the mean sentence's words."""
    task = jobs.made("tagger", tmp_path)
    task.begin(1)
    total, (train, model) = sum(jobs.taken(task, k)[0] for k in range(task.steps)), (task.train, task.model)
    want = 0.0
    for words, tags in zip(train.sentences(train.words), train.sentences(train.tags)):
        x = torch.tensor([[task.words.index(word)] for word in words])
        z = model.scores(model.lstm(model.embedding(x))[0])[:, 0]
        want += F.cross_entropy(z, torch.tensor([task.tags.index(tag) for tag in tags]), reduction="sum").item()
    assert total / task.examples == pytest.approx(want / len(train.words), rel=1e-5)


def test_f1_counts_whole_chunks():
    """Right only with all words and kind: of 3 chunks, and 3 found, one is right; I- that begins a chunk makes none."""
    gold = [["B-A", "I-A", "O", "B-B"], ["B-A", "O"]]
    assert chunk_f1(gold, [["B-A", "I-A", "O", "B-A"], ["B-A", "I-A"]], "IOB2") == pytest.approx(1 / 3)
    assert chunk_f1(gold, [["I-A", "I-A", "O", "B-B"], ["O", "O"]], "IOB2") == pytest.approx(2 / 4)
    assert chunk_f1(gold, [["O"] * 4, ["O"] * 2], "IOB2") == 0
    assert [scheme_of(tags) for tags in (("O", "B-A", "I-A"), ("O", "B-A", "E-A", "S-A"), ("U-A", "L-A"), ("NN", "B-A"),
                                         ("O",), ("X-A", "O"))] == ["IOB2", "IOBES", "BILOU", None, None, None]


@pytest.mark.parametrize("decoder", ["softmax", "crf"])
def test_learns_and_is_saved(tmp_path, decoder):
    """The kind of a chunk is told by a word before it; the saved model measures the same, on tags it never saw too."""
    held = jobs.sentences(tmp_path / "held", 30, seed=1)
    task = build("tagger", TaggerOptions(jobs.sentences(tmp_path / "a", 100), test=held, decoder=decoder, hidden=12))
    assert task.evaluate()["f1"] < 0.5
    found = jobs.trained(task, 6, 0.1).evaluate()
    assert min(found.values()) > 0.95
    model_files.save(tmp_path / "m", *task.export())
    assert measured(tmp_path / "m", held)[1] == found
    more = written(tmp_path / "more", held.read_text() + "\nnew 1 B-C\n")
    assert found["accuracy"] > measured(tmp_path / "m", more)[1]["accuracy"] > 0.9 * found["accuracy"]


def test_generated_sentences(tmp_path):
    """Names are people's or places', and only the word before says which; they are as many for each seed."""
    task = build("tagger", TaggerOptions())
    assert task.facts["source"].startswith("synthetic") and task.facts["examples"] == 1800 and task.scheme == "IOB2"
    kinds = {}
    for word, tag in zip(task.train.words, task.train.tags):
        kinds.setdefault(word, set()).add(tag[2:])
    assert sum({"PER", "LOC"} <= kind for kind in kinds.values()) == len(tagged.NAMES)


GOOD = "a N B-X\nb N O\n\nc N O\n"


@pytest.mark.parametrize("text, told", [
    ("a N B-X\nb O\n", r"bad, line 2: got 2 columns \('b O'\), needed 3, as in line 1: the word first and the tag last"),
    ("a\n", r"bad, line 1: got 1 column \('a'\), needed at least 2"),
    ("\n \n\n", "bad: holds no sentence; needed lines of columns"), ("", "bad: is empty"),
    (b"a O\n\xff O\n".decode("latin-1"), "bad, line 2: got bytes .* needed text in UTF-8")])
@pytest.mark.parametrize("part", ["data", "test"])
def test_bad_files(tmp_path, text, told, part):
    (tmp_path / "bad").write_bytes(text.encode("latin-1"))
    given = {"data": written(tmp_path / "good", GOOD), part: tmp_path / "bad"}
    with pytest.raises(UserError, match=told):
        build("tagger", TaggerOptions(**given))


def test_what_does_not_fit(tmp_path):
    with pytest.raises(UserError, match="has 2 sentences, of which --holdout 0.1 holds out none"):
        build("tagger", TaggerOptions(written(tmp_path / "few", GOOD)))
    with pytest.raises(UserError, match="--decoder must be softmax or crf, got 'viterbi'"):
        build("tagger", TaggerOptions(decoder="viterbi"))
    task = build("tagger", TaggerOptions(written(tmp_path / "pos", "a NN\nb VB\n\nc VB\n"), holdout=0.5, hidden=2))
    assert task.metric == "accuracy"
    with pytest.raises(UserError, match="no metric 'f1' is measured here; choose one of accuracy"):
        Stopper(Stop("f1"), list(task.evaluate()))
    with pytest.raises(UserError, match="no metric 'bleu' is measured here; choose one of f1, accuracy"):
        Stopper(Stop("bleu"), list(jobs.made("tagger", tmp_path).evaluate()))


def test_over_mpi(tmp_path):
    """Two ranks train with every exchange, save, and measure again."""
    program = written(tmp_path / "program.py", """
import sys
from sparsecomm import cli
folder = sys.argv[1]
data = [folder + "/a", "--test", folder + "/held", "--hidden", "12", "--batch", "4", "--epochs", "5", "--lr", "0.03",
        "--decoder", "crf", "--keep", "0.1", "--early-stopping", "f1", "--quiet"]
for exchange in ("dense", "allgather", "balanced"):
    cli.main(["train", "tagger", *data, "--exchange", exchange, "--model", f"{folder}/{exchange}.model"])
cli.main(["evaluate", folder + "/dense.model", folder + "/held"])
""")
    held = jobs.sentences(tmp_path / "held", 30, seed=1)
    jobs.sentences(tmp_path / "a", 100)
    ended = mpirun(2, program, tmp_path)
    assert ended.code == 0, ended.err
    scores = {name: measured(tmp_path / f"{name}.model", held)[1]["f1"] for name in ("dense", "allgather", "balanced")}
    assert min(scores.values()) > 0.8 and f"f1         {scores['dense']:.6f}" in ended.out
