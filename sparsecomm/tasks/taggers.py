"""Taggers: a BiLSTM over the words of a sentence, and what makes tags of its scores, word by word or by a CRF."""

import torch
from torch import nn
from torch.nn import functional as F


class Softmax(nn.Module):
    """Every word's tag by itself."""

    def loss(self, z, tags, lengths):
        """Summed negative log-likelihood of tags int64[T, B] under scores [T, B, tags], the first lengths[b] of column b."""
        return F.cross_entropy(z[inside(z, lengths)], tags[inside(z, lengths)], reduction="sum")

    def best(self, z, lengths):
        """int64[T, B]: the likeliest tags; behind a sentence's end whatever it is."""
        return z.argmax(2)


class Crf(nn.Module):
    """A score for each tag that follows another, at the beginning and at the end (linear-chain CRF, Lafferty et al. 2001)."""

    def __init__(self, tags):
        super().__init__()
        self.follows = nn.Parameter(torch.zeros(tags, tags))  # [before, after]
        self.first, self.last = nn.Parameter(torch.zeros(tags)), nn.Parameter(torch.zeros(tags))

    def loss(self, z, tags, lengths):
        """As Softmax's: log of the sum over all tag sequences, less the score of this one."""
        within, columns = inside(z, lengths), torch.arange(z.shape[1])
        total = self.first + z[0]
        for t in range(1, len(z)):
            on = torch.logsumexp(total[:, :, None] + self.follows, 1) + z[t]
            total = torch.where(within[t][:, None], on, total)
        score = (z.gather(2, tags[:, :, None])[:, :, 0] * within).sum()
        score = score + (self.follows[tags[:-1], tags[1:]] * within[1:]).sum()
        score = score + self.first[tags[0]].sum() + self.last[tags[lengths - 1, columns]].sum()
        return torch.logsumexp(total + self.last, 1).sum() - score

    def best(self, z, lengths):
        """As Softmax's, of the likeliest sequence (Viterbi 1967)."""
        within, total, came = inside(z, lengths), self.first + z[0], []
        for t in range(1, len(z)):
            on, before = (total[:, :, None] + self.follows).max(1)
            total = torch.where(within[t][:, None], on + z[t], total)
            came.append(torch.where(within[t][:, None], before, torch.arange(z.shape[2])))  # behind the end: the same tag
        tags = [(total + self.last).argmax(1)]
        for before in reversed(came):
            tags.append(before.gather(1, tags[-1][:, None])[:, 0])
        return torch.stack(tags[::-1])


def inside(z, lengths):
    """bool[T, B]: which words of a padded batch are some."""
    return torch.arange(len(z))[:, None] < lengths


DECODERS = {"softmax": lambda tags: Softmax(), "crf": Crf}


class Tagger(nn.Module):
    """Word embedding, one bidirectional LSTM layer, scores of the tags (Huang et al. 2015); dropout before and behind it."""

    def __init__(self, words, tags, hidden, decoder, dropout=0.0):
        super().__init__()
        self.embedding, self.lstm = nn.Embedding(words, hidden), nn.LSTM(hidden, hidden, bidirectional=True)
        self.scores, self.decoder, self.dropout = nn.Linear(2 * hidden, tags), DECODERS[decoder](tags), dropout
        nn.init.uniform_(self.embedding.weight, -0.1, 0.1)

    def forward(self, words, lengths):
        """Scores float32[T, B, tags] of words int64[T, B], the first lengths[b] of column b, the longest of T words."""
        x = F.dropout(self.embedding(words), self.dropout, self.training)
        x = nn.utils.rnn.pack_padded_sequence(x, lengths, enforce_sorted=False)
        x = nn.utils.rnn.pad_packed_sequence(self.lstm(x)[0])[0]
        return self.scores(F.dropout(x, self.dropout, self.training))
