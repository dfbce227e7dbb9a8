"""Torch models on the CPU, whose gradients are handed over while backward still runs; the tasks `mlp`, `cnn` and `lm`."""

import functools
import math
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional as F

from hogwild.data.files import place
from hogwild.errors import UserError, demand
from hogwild.training import metrics
from hogwild.training.record import versions
from sparsecomm.data import images, text
from sparsecomm.tasks import models
from sparsecomm.tasks.base import Task, summed

BLOCK = 256  # images evaluated together: always the same ones, so that all ranks round alike
STREAMS, GROUP, LEAST = 32, 4, 1000  # of an evaluated text: at most so many, so many together, of at least so many words


class TorchTask(Task):
    """A torch model; its gradients lie in memory that is allotted once."""

    def adopt(self, make):
        """Take the model that `make()` returns, its first weights from the seed."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.options.seed)
            self.model = make()
        self.gradients = {}
        for name, p in self.model.named_parameters():
            p.grad = torch.zeros_like(p)
            self.gradients[name] = p.grad.numpy().reshape(-1)
            p.register_post_accumulate_grad_hook(functools.partial(self._final, name))
        self.facts["parameters"] = sum(g.size for g in self.gradients.values())

    def tensors(self):
        return {name: p.detach().numpy().reshape(-1) for name, p in self.model.named_parameters()}

    def shapes(self):
        return {name: tuple(p.shape) for name, p in self.model.named_parameters()}

    def _final(self, name, p):
        self.waiting.remove(name)
        self.ready(name, self.gradients[name])

    def learn(self, loss, factor, ready) -> float:
        """Gradients of `factor` times loss, a scalar tensor or None for no examples, to `ready`; the loss as a number."""
        for gradient in self.gradients.values():
            gradient[:] = 0
        self.ready, self.waiting = ready, list(reversed(self.gradients))
        if loss is not None:
            (factor * loss).backward()  # a gradient as its argument would have torch import sympy, for half a second
        for name in list(self.waiting):  # those that the loss does not depend on
            ready(name, self.gradients[name])
        return 0.0 if loss is None else float(loss.detach())

    def draw(self, k):
        """Seed what step k's dropout leaves out: a state of its own at each step, so a resumed run has nothing to keep."""
        if self.options.dropout:
            seed = np.random.SeedSequence((self.options.seed, self.epoch, k, self.rank)).generate_state(1, np.uint64)
            torch.default_generator.manual_seed(int(seed[0]))

    def export(self):
        tensors = {name: p.detach().numpy().copy() for name, p in self.model.named_parameters()}
        return tensors, {"family": self.name, "versions": {**versions(), "torch": torch.__version__}}

    @torch.no_grad()
    def put(self, tensors):
        """Parameters of a model file into the model. Raises ValueError or KeyError where they do not fit."""
        for name, p in self.model.named_parameters():
            demand(tensors[name].shape == tuple(p.shape), f"{name} is of another form")
            p.copy_(torch.from_numpy(tensors[name]))


class ImageTask(TorchTask):
    """Classes of images; pixels are brought to mean 0 and deviation 1, channel by channel, over the training images.

    A subclass has `network`, and what of its options a model file must hold.
    """

    smallest = 1  # height and width of an image

    @staticmethod
    def network(shape, classes, chosen) -> torch.nn.Module:
        """The model for images of shape (height, width, channels), from what `chosen` gives."""
        raise NotImplementedError

    @staticmethod
    def chosen(options) -> dict:
        """What of the options the network depends on: numbers and switches, for the header of a model file."""
        raise NotImplementedError

    def __init__(self, name, options, rank, size):
        super().__init__(name, options, rank, size)
        self.split = images.load(options.data, options.labels, options.test, options.test_labels, options.holdout,
                                 options.seed)
        train, classes = self.split.train, self.split.classes
        height, width, channels = shape = train.x.shape[1:]
        if min(height, width) < self.smallest:
            raise UserError(f"{train.source}: holds images of {height} x {width}, {name} needs at least {self.smallest} x "
                            f"{self.smallest}; reshape them, or train mlp")
        self.examples = len(self.split.rows)
        self.mean, self.deviation = images.scales(train, self.split.rows)
        self.facts = {"source": train.source, "examples": self.examples, "held_out": len(self.split.test_rows),
                      "features": height * width * channels, "classes": classes}
        self.adopt(lambda: self.network(shape, classes, self.chosen(options)))

    @classmethod
    def from_model(cls, tensors, header, data, labels):
        shape, classes = [header[key] for key in ("height", "width", "channels")], header["classes"]
        held = images.read_test(data, labels)
        images.check_like(held, shape, classes)
        task = cls.__new__(cls)
        task.split = images.Split(held, np.zeros(0, np.int64), held, np.arange(len(held.y)), classes)
        task.mean, task.deviation = tensors["pixel_mean"], tensors["pixel_deviation"]
        task.model = cls.network(shape, classes, header)
        task.put(tensors)
        return task, f"{held.source}: {len(held.y):,} images"

    def _batch(self, source, rows):
        """(float32 [m, channels, height, width], int64 [m])."""
        x = (source.x[rows].astype(np.float32) - self.mean) / self.deviation
        return torch.from_numpy(np.ascontiguousarray(np.moveaxis(x, 3, 1))), torch.from_numpy(source.y[rows])

    def step(self, k, ready):
        examples, factor = self.own_share(k)
        loss = None
        if len(examples):
            x, y = self._batch(self.split.train, self.split.rows[examples])
            loss = F.cross_entropy(self.model(x), y, reduction="sum")
        return self.learn(loss, factor, ready), len(examples)

    @torch.no_grad()
    def evaluate(self, comm=None):
        rows = self.split.test_rows
        if not len(rows):
            return {}
        table = np.zeros((2, len(rows)))  # each image's loss, and the class that is found
        for start in range(BLOCK * self.rank, len(rows), BLOCK * self.size):
            x, y = self._batch(self.split.test, rows[start:start + BLOCK])
            z = self.model(x)
            table[0, start:start + BLOCK] = F.cross_entropy(z, y, reduction="none").numpy()
            table[1, start:start + BLOCK] = z.argmax(1).numpy()
        losses, found = summed(comm, table)
        found, labels = found.astype(np.int64), self.split.test.y[rows]
        if np.isnan(losses).any():
            return dict.fromkeys(("accuracy", "f1", "log_loss"), math.nan)
        return {"accuracy": float(np.mean(found == labels)), "f1": metrics.macro_f1(found, labels, self.split.classes),
                "log_loss": float(np.mean(losses))}

    def arrays(self):
        return {"images": self.split.train.x, "labels": self.split.train.y, "rows": self.split.rows}

    def export(self):
        tensors, header = super().export()
        shape = dict(zip(("height", "width", "channels"), self.split.train.x.shape[1:]))
        return {**tensors, "pixel_mean": self.mean, "pixel_deviation": self.deviation}, {
            **header, "classes": self.split.classes, **shape, **self.chosen(self.options)}


class MlpTask(ImageTask):
    """Three fully connected layers."""

    @staticmethod
    def network(shape, classes, chosen):
        return models.mlp(math.prod(shape), chosen["layers"], classes, chosen["layer_norm"])

    @staticmethod
    def chosen(options):
        return {"layers": options.width, "layer_norm": options.layer_norm}


class CnnTask(ImageTask):
    """Two convolutions and two linear layers."""

    smallest = 4

    @staticmethod
    def network(shape, classes, chosen):
        height, width, channels = shape
        return models.cnn(channels, height, width, chosen["planes"], classes)

    @staticmethod
    def chosen(options):
        return {"planes": options.channels}


class LanguageTask(TorchTask):
    """The next word of a text. The text is cut into ranks x batch streams, read side by side; the state is carried on.

    Every epoch starts elsewhere in the text, whose end is followed by its beginning; so other words are neighbours in a
    batch, and the few that do not fill a stream are others.
    """

    metric = "perplexity"
    bptt = 35  # words of a step of the evaluation, where there are no options

    def __init__(self, name, options, rank, size):
        if options.data is None:
            raise UserError("lm needs DATA: a text, or a folder with *train* and *valid* texts")
        self.corpus = text.load(options.data, options.test, options.holdout, options.vocab_size)
        super().__init__(name, options, rank, size)
        held, words = self.corpus.held, len(self.corpus.words)
        self.facts = {"source": self.corpus.source, "examples": len(self.corpus.train),
                      "held_out": 0 if held is None else len(held), "vocabulary": words,
                      "unknown": float(np.mean(self.corpus.train == 0))}
        self.bptt = options.bptt
        self.adopt(lambda: self.network(words, self.chosen(options), options.dropout))

    @staticmethod
    def chosen(options) -> dict:
        """What of the options the network depends on, for the header of a model file."""
        lstm = options.network == "lstm"
        more = {} if lstm else {"heads": options.heads or 4, "context": options.bptt}
        return {"network": options.network, "hidden": options.hidden, "layers": options.layers or (1 if lstm else 2),
                "tied": options.tied, **more}

    @staticmethod
    def network(words, chosen, dropout=0.0) -> torch.nn.Module:
        """The model for `words` words, from what `chosen` gives; files that name no network hold one LSTM layer."""
        hidden, layers, tied = chosen["hidden"], chosen.get("layers", 1), chosen["tied"]
        if chosen.get("network", "lstm") == "lstm":
            return models.LanguageModel(words, hidden, layers, dropout, tied)
        return models.TransformerModel(words, hidden, layers, chosen["heads"], chosen["context"], dropout, tied)

    @classmethod
    def from_model(cls, tensors, header, data, labels):
        if labels:
            raise UserError("--labels is for images; a text has none")
        words, task = header["vocabulary"], cls.__new__(cls)
        held = text.numbered(Path(data), {word.encode(): k for k, word in enumerate(words)})
        task.corpus = text.Corpus(held, held, words, place(data))
        task.model = cls.network(len(words), header)
        task.put(tensors)
        return task, f"{place(data)}: {len(held):,} words"

    def reshard(self, rank, size):
        super().reshard(rank, size)
        streams = size * self.options.batch
        self.length = len(self.corpus.train) // streams
        self.examples = self.length * streams
        if not self.length:
            raise UserError(f"{self.corpus.source}: has {len(self.corpus.train)} words, fewer than the {streams} streams of "
                            f"{size} x --batch {self.options.batch}; make --batch smaller")

    def default_lr(self, rule):
        return super().default_lr(rule) / (1 if self.options.network == "lstm" else 2)

    @property
    def steps(self):
        return -(-self.length // self.bptt)

    def begin(self, epoch):
        self.epoch, self.hidden = epoch, self.model.start(self.options.batch)
        first = np.random.default_rng((self.options.seed, epoch)).integers(len(self.corpus.train))
        self.starts = first + self.length * (self.rank * self.options.batch + np.arange(self.options.batch))

    def step(self, k, ready):
        start, stop = k * self.bptt, min((k + 1) * self.bptt, self.length)
        at = (self.starts + np.arange(start, stop + 1)[:, None]) % len(self.corpus.train)
        words = torch.from_numpy(self.corpus.train[at].astype(np.int64))
        self.draw(k)
        z, hidden = self.model(words[:-1], self.hidden)
        self.hidden = tuple(x.detach() for x in hidden)
        loss = F.cross_entropy(z, words[1:].flatten(), reduction="sum")
        count = (stop - start) * self.options.batch
        return self.learn(loss, 1 / count, ready), count

    @torch.no_grad()
    def evaluate(self, comm=None):
        """Perplexity of every word of the held-out text, the first ones of up to STREAMS parts without those before."""
        held = self.corpus.held
        if held is None:
            return {}
        streams = min(max(len(held) // LEAST, 1), STREAMS)
        length = -(-len(held) // streams)
        words = np.full(streams * length, -100)  # what cross_entropy passes over
        words[:len(held)] = held
        before = np.append(self.corpus.words.index(text.EOS), words[:-1]).clip(0)
        before, words = (torch.from_numpy(x.reshape(streams, length).T.copy()) for x in (before, words))
        losses = np.zeros(-(-streams // GROUP))
        self.model.eval()
        for group in range(self.rank, len(losses), self.size):
            own = slice(group * GROUP, (group + 1) * GROUP)
            losses[group] = self._loss(before[:, own], words[:, own])
        self.model.train()
        return {"perplexity": float(np.exp(summed(comm, losses).sum() / len(held)))}

    def _loss(self, before, words):
        """Loss sum of words [length, streams] that follow `before`, read from the zero state on."""
        state, total = self.model.start(before.shape[1]), 0.0
        context = getattr(self.model, "context", None)
        length = context - context // 2 if context else self.bptt
        for start in range(0, len(before), length):
            z, state = self.model(before[start:start + length], state)
            total += float(F.cross_entropy(z, words[start:start + length].flatten(), reduction="sum"))
        return total

    def state(self):
        return dict(zip(self.model.carried, (x.numpy() for x in self.hidden)))

    def load(self, state):
        self.hidden = tuple(torch.from_numpy(np.array(state[name], np.float32)) for name in self.model.carried)

    def arrays(self):
        return {"words": self.corpus.train}

    def export(self):
        tensors, header = super().export()
        return tensors, {**header, **self.chosen(self.options), "vocabulary": self.corpus.words}
