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
    """Word embedding, LSTM layers, scores of the next word; dropout in front of, between and behind them (Zaremba 2014).

    tied: the scores use the embedding's matrix (Press & Wolf 2017). All weights start uniformly in ±0.1.
    """

    carried = ("h", "c")  # names of the state that training carries from step to step

    def __init__(self, words, hidden, layers=1, dropout=0.0, tied=False):
        super().__init__()
        self.embedding = nn.Embedding(words, hidden)
        self.lstm = nn.LSTM(hidden, hidden, layers, dropout=dropout if layers > 1 else 0.0)
        self.scores = nn.Linear(hidden, words)
        self.dropout = dropout
        if tied:
            self.scores.weight = self.embedding.weight
        for p in self.parameters():
            nn.init.uniform_(p, -0.1, 0.1)

    def start(self, streams):
        """The state (h, c) before the first word: zeros [layers, streams, hidden]."""
        return tuple(torch.zeros(self.lstm.num_layers, streams, self.lstm.hidden_size) for _ in range(2))

    def forward(self, words, state):
        """(scores float32[T streams, words], state after) of words int64[T, streams] that follow `state`."""
        inputs = F.dropout(self.embedding(words), self.dropout, self.training)
        outputs, state = self.lstm(inputs, state)
        return self.scores(F.dropout(outputs, self.dropout, self.training)).flatten(0, 1), state


class TransformerModel(nn.Module):
    """Causal pre-norm Transformer (Vaswani et al. 2017; norm in front: Xiong et al. 2020) with learned positions.

    context: the words that a score depends on, at most. A training step of `context` words sees nothing before them; in
    evaluation the second half of the context is scored given the first, so every word but those at the start of a text
    has at least half a context before it. Weights start as GPT-2's: N(0, 0.02²), biases 0, norms 1.
    """

    carried = ()

    def __init__(self, words, hidden, layers, heads, context, dropout=0.0, tied=False):
        super().__init__()
        self.context, self.dropout = context, dropout
        self.embedding, self.positions = nn.Embedding(words, hidden), nn.Embedding(context, hidden)
        self.layers = nn.ModuleList(nn.TransformerEncoderLayer(hidden, heads, 4 * hidden, dropout, F.gelu, norm_first=True)
                                    for _ in range(layers))
        self.norm, self.scores = nn.LayerNorm(hidden), nn.Linear(hidden, words)
        if tied:
            self.scores.weight = self.embedding.weight
        for name, p in self.named_parameters():
            if p.dim() > 1:
                nn.init.normal_(p, 0, 0.02)
            elif "norm" not in name:
                nn.init.zeros_(p)

    def start(self, streams):
        """The state before the first word: no words."""
        return ()

    def forward(self, words, state):
        """As LanguageModel's; state: () or, in evaluation, (the words before, int64[at most context // 2, streams]).

        words: at most `context` in training, context - context // 2 in evaluation.
        """
        seen = torch.cat((*state, words))
        x = self.embedding(seen) + self.positions.weight[:len(seen), None]
        x = F.dropout(x, self.dropout, self.training)
        hidden = nn.Transformer.generate_square_subsequent_mask(len(seen))
        for layer in self.layers:
            x = layer(x, hidden, is_causal=True)
        before = self.context // 2
        state = () if self.training or not before else (seen[-before:],)
        return self.scores(self.norm(x[len(seen) - len(words):])).flatten(0, 1), state
