"""The torch models of the tasks: float32, on the CPU."""

import torch
from torch import nn
from torch.nn import functional as F


def mlp(inputs, width, classes, layer_norm=False) -> nn.Sequential:
    """Three fully connected layers of `width` units with ReLU, then the classes' scores (Aji & Heafield 2017, MNIST).

    Takes images of `inputs` values in all. layer_norm: normalize each layer before its ReLU, which brings the gradients
    of all layers to a like scale, as one threshold for all of them wants it.
    """
    layers = [nn.Flatten()]
    for wide in (inputs, width, width):
        layers += [nn.Linear(wide, width), *([nn.LayerNorm(width)] if layer_norm else []), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(width, classes))


def cnn(channels, height, width, planes, classes) -> nn.Sequential:
    """Two convolutions of 3x3 (`planes` and twice as many), each halved by max pooling, and two linear layers.

    Takes images [n, channels, height, width] of at least 4x4.
    """
    flat = 2 * planes * (height // 4) * (width // 4)
    return nn.Sequential(
        nn.Conv2d(channels, planes, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(planes, 2 * planes, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(flat, 4 * planes), nn.ReLU(), nn.Linear(4 * planes, classes))


class LanguageModel(nn.Module):
    """Word embedding, one LSTM layer, scores of the next word; dropout in front of and behind the LSTM (Zaremba 2014).

    tied: the scores use the embedding's matrix (Press & Wolf 2017). All weights start uniformly in ±0.1.
    """

    def __init__(self, words, hidden, dropout=0.0, tied=False):
        super().__init__()
        self.embedding, self.lstm = nn.Embedding(words, hidden), nn.LSTM(hidden, hidden)
        self.scores = nn.Linear(hidden, words)
        self.dropout = dropout
        if tied:
            self.scores.weight = self.embedding.weight
        for p in self.parameters():
            nn.init.uniform_(p, -0.1, 0.1)

    def start(self, streams):
        """The state (h, c) before the first word: zeros [1, streams, hidden]."""
        return tuple(torch.zeros(1, streams, self.lstm.hidden_size) for _ in range(2))

    def forward(self, words, state):
        """(scores float32[T streams, words], state after) of words int64[T, streams] that follow `state`."""
        inputs = F.dropout(self.embedding(words), self.dropout, self.training)
        outputs, state = self.lstm(inputs, state)
        return self.scores(F.dropout(outputs, self.dropout, self.training)).flatten(0, 1), state
