"""The torch models that experiments train in shared memory, as `hogwild train torch` wants them: functions of a module.

hogwild train torch hogwild.experiments.programs.torch_tasks:mlp
"""

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset

import hogwild.torch
from hogwild.data import dataset
from hogwild.experiments.plan import published
from sparsecomm.data import images
from sparsecomm.tasks import models

CLASSES, SIDE, HIDDEN, PLANES, BATCH = 10, 28, 256, 8, 64
WORDS = 100_000  # rows of the embedding; rarer words share some


def mnist():
    """((images float32[60000, 1, 28, 28], classes), the same of the 10000 held out); pixels of mean 0 and deviation 1."""
    split = images.load(published.folder() / "mnist")
    mean, deviation = images.scales(split.train, split.rows)
    return tuple((torch.from_numpy(np.moveaxis((part.x.astype(np.float32) - mean) / deviation, 3, 1).copy()),
                  torch.from_numpy(part.y)) for part in (split.train, split.test))


def perceptron():
    """784-256-10."""
    return nn.Sequential(nn.Flatten(), nn.Linear(SIDE * SIDE, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, CLASSES))


def convolutions():
    """Two convolutions of 8 and 16 planes, each halved, and two linear layers: 28,000 parameters."""
    return models.cnn(1, SIDE, SIDE, PLANES, CLASSES)


def entropy(model, batch):
    x, y = batch
    return F.cross_entropy(model(x), y)


def accuracy(model, batch):
    x, y = batch
    return {"accuracy": (model(x).argmax(1) == y).float().mean()}


class Reviews(Dataset):
    """The bags of words of imdb: a batch is (words int64[m], where each review begins, their weights), and the classes."""

    def __init__(self, part):
        data = dataset.read(published.folder() / "imdb" / f"imdb-bow.{part}.svm.xz")
        self.starts, self.words = data.indptr, torch.from_numpy(data.indices.astype(np.int64) % WORDS)
        self.weights = torch.from_numpy(np.log1p(data.values))
        self.classes = torch.from_numpy((data.labels > 0).astype(np.int64))

    def __len__(self):
        return len(self.classes)

    def __getitem__(self, i):
        return self.__getitems__([i])

    def __getitems__(self, rows):
        lengths = np.diff(self.starts)[rows]
        at = np.repeat(self.starts[rows] - np.cumsum(lengths) + lengths, lengths) + np.arange(lengths.sum())
        starts, at = torch.from_numpy(np.cumsum(lengths) - lengths), torch.from_numpy(at)
        return (self.words[at], starts, self.weights[at]), self.classes[rows]


def as_it_is(batch):
    return batch


def reviews():
    return tuple(DataLoader(Reviews(part), BATCH, shuffle=part == "train", collate_fn=as_it_is) for part in ("train", "test"))


class Bag(nn.Module):
    """Classes of a weighted sum of sparse embeddings."""

    def __init__(self, dimension=64):
        super().__init__()
        self.words, self.out = nn.EmbeddingBag(WORDS, dimension, mode="sum", sparse=True), nn.Linear(dimension, 2)
        nn.init.normal_(self.words.weight, std=0.01)

    def forward(self, x):
        words, starts, weights = x
        return self.out(self.words(words, starts, per_sample_weights=weights))


def mlp():
    return hogwild.torch.Task(perceptron, mnist, entropy, accuracy, BATCH)


def cnn():
    return hogwild.torch.Task(convolutions, mnist, entropy, accuracy, BATCH)


def bag():
    return hogwild.torch.Task(Bag, reviews, entropy, accuracy, BATCH)


TASKS = {"mlp": mlp, "cnn": cnn, "bag": bag}
