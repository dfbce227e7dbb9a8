"""Task `tagger`: a tag for every word of a sentence, measured in whole chunks by seqeval."""

import importlib.util
import math
import warnings
from collections import Counter

import numpy as np
import torch

from hogwild.data.files import place
from hogwild.errors import UserError
from sparsecomm.data import tagged
from sparsecomm.tasks.base import summed
from sparsecomm.tasks.taggers import Tagger
from sparsecomm.tasks.torch_tasks import TorchTask

UNKNOWN = "<unk>"  # number 0
BLOCK = 64  # sentences evaluated together: always the same ones, so that all ranks round alike
SCHEMES = {"IOB2": "BIO", "IOE2": "IEO", "IOBES": "IOBES", "BILOU": "BILOU"}  # the letters in front of a chunk's kind


def scheme_of(tags) -> str | None:
    """Name of the scheme by which tags (B-NP, O, …) mark chunks, or None where they mark none, as parts of speech do."""
    if not all(tag == "O" or tag[1:2] == "-" and tag[2:] for tag in tags) or set(tags) <= {"O"}:
        return None
    letters = {tag[0] for tag in tags}
    return next((name for name, known in SCHEMES.items() if letters <= set(known)), None)


def chunk_f1(gold, found, name) -> float:
    """F1 of the chunks that have all their words and their kind (lists of tags by sentence; seqeval, strict, micro-mean)."""
    from seqeval import scheme
    from seqeval.metrics import f1_score
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # where no chunk is found F1 is 0, as it should be
        return float(f1_score(gold, found, mode="strict", scheme=getattr(scheme, name)))


class TaggerTask(TorchTask):
    """A BiLSTM, its tags chosen word by word or by a CRF.

    An example is a sentence; its loss is the negative log-likelihood of its tags over the mean sentence's words, so that the
    mean loss of an epoch is that of a word.
    """

    metric = "f1"

    def __init__(self, name, options, rank, size):
        demand_seqeval()
        super().__init__(name, options, rank, size)
        self.train, self.held = tagged.load(options.data, options.test, options.holdout, options.seed)
        counts = Counter(self.train.words)
        self.words = [UNKNOWN, *sorted(counts, key=lambda word: -counts[word])[:options.vocab_size - 1]]
        self.tags = sorted(set(self.train.tags))
        self.examples = len(self.train.bounds) - 1
        self.scheme = scheme_of({*self.tags, *(self.held.tags if self.held else ())})
        if self.scheme is None:
            self.metric = "accuracy"
        self.notes = self.train.notes + (self.held.notes if options.test and self.held else ())
        self.number()
        number = {tag: k for k, tag in enumerate(self.tags)}
        self.gold = np.array([number[tag] for tag in self.train.tags])
        self.facts = {"source": self.train.source, "examples": self.examples,
                      "held_out": len(self.held.bounds) - 1 if self.held else 0, "words": len(self.train.words),
                      "vocabulary": len(self.words), "tags": len(self.tags)}
        self.adopt(lambda: Tagger(len(self.words), len(self.tags), options.hidden, options.decoder, options.dropout))

    def number(self):
        """The words of training and held-out sentences as numbers of the vocabulary."""
        index = {word: k for k, word in enumerate(self.words)}
        self.inputs, self.held_inputs = (part and np.array([index.get(word, 0) for word in part.words])
                                         for part in (self.train, self.held))

    @classmethod
    def from_model(cls, tensors, header, data, labels):
        demand_seqeval()
        if labels:
            raise UserError("--labels is for images; sentences have their tags beside the words")
        task = cls.__new__(cls)
        task.train, task.held, task.words, task.tags = None, tagged.read(data), header["vocabulary"], header["tags"]
        task.scheme = scheme_of({*task.tags, *task.held.tags})
        task.number()
        task.model = Tagger(len(task.words), len(task.tags), header["hidden"], header["decoder"])
        task.put(tensors)
        return task, f"{place(data)}: {len(task.held.bounds) - 1:,} sentences"

    def step(self, k, ready):
        examples, factor = self.own_share(k)
        loss = None
        if len(examples):
            self.draw(k)
            words, lengths = padded(self.inputs, self.train.bounds, examples)
            tags, _ = padded(self.gold, self.train.bounds, examples)
            loss = self.model.decoder.loss(self.model(words, lengths), tags, lengths) * (self.examples / len(self.gold))
        return self.learn(loss, factor, ready), len(examples)

    @torch.no_grad()
    def evaluate(self, comm=None):
        """F1 where the tags mark chunks, and the share of words that have their tag; one that training had not is missed."""
        if self.held is None:
            return {}
        found, bounds = np.zeros(len(self.held.words)), self.held.bounds  # the number of each word's tag
        self.model.eval()
        for start in range(BLOCK * self.rank, len(bounds) - 1, BLOCK * self.size):
            which = np.arange(start, min(start + BLOCK, len(bounds) - 1))
            words, lengths = padded(self.held_inputs, bounds, which)
            z = self.model(words, lengths)
            best = self.model.decoder.best(z, lengths).T[(torch.arange(len(z)) < lengths[:, None])]
            found[bounds[start]:bounds[which[-1] + 1]] = best.numpy() if z.isfinite().all() else math.nan
        self.model.train()
        found = summed(comm, found)
        if np.isnan(found).any():
            return dict.fromkeys(("f1", "accuracy") if self.scheme else ("accuracy",), math.nan)
        found = [self.tags[k] for k in found.astype(np.int64)]
        accuracy = {"accuracy": float(np.mean([a == b for a, b in zip(found, self.held.tags)]))}
        if self.scheme is None:
            return accuracy
        return {"f1": chunk_f1(self.held.sentences(self.held.tags), self.held.sentences(found), self.scheme), **accuracy}

    def arrays(self):
        return {"words": self.inputs, "tags": self.gold, "bounds": self.train.bounds}

    def export(self):
        tensors, header = super().export()
        return tensors, {**header, "hidden": self.options.hidden, "decoder": self.options.decoder, "vocabulary": self.words,
                         "tags": self.tags}


def padded(values, bounds, which):
    """(int64[T, B], lengths int64[B]) of one value a word: a column for each sentence of `which`, filled up with zeros."""
    parts = [torch.from_numpy(values[bounds[k]:bounds[k + 1]]) for k in which]
    return torch.nn.utils.rnn.pad_sequence(parts), torch.tensor([len(part) for part in parts])


def demand_seqeval():
    if importlib.util.find_spec("seqeval") is None:
        raise UserError("tagger needs seqeval: pip install '.[tagging]'")
