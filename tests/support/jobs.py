"""Small tasks of every kind, from files written on the spot, and what their steps hand over."""

import numpy as np

from sparsecomm.tasks.options import CnnOptions, LinearOptions, LmOptions, MlpOptions, TaggerOptions
from sparsecomm.tasks.registry import build

# By examples:
SHUFFLED = ("logistic", "one-against-rest", "softmax", "huber", "mlp", "mlp-norm", "cnn", "tagger", "tagger-crf")
NAMES = (*SHUFFLED, "lm", "lm-tied", "lm-transformer")
EXAMPLES = 44  # for training: batches of 6 leave one of 2, which on three ranks leaves one without any


def rows(classes, seed=0, n=55, d=12):
    """(x [n, d] of small whole numbers, labels; real ones for no classes)."""
    rng = np.random.default_rng(seed)
    x = rng.poisson(0.7, (n, d)).astype(np.float32)
    z = (x - x.mean(0)) @ rng.standard_normal((d, max(classes, 1)))
    return x, z.argmax(1) if classes > 2 else (z[:, 0] > 0) * 2 - 1 if classes else np.round(z[:, 0], 3)


def svmlight(path, x, y):
    path.write_text("".join(f"{label:g} {' '.join(f'{j + 1}:{v:g}' for j, v in enumerate(row) if v)}\n"
                            for row, label in zip(x, y)))
    return path


def pictures(path, n=55, size=8, seed=0):
    rng = np.random.default_rng(seed)
    y = rng.integers(3, size=n)
    np.savez(path, x=rng.integers(60, size=(n, size, size, 2)) + 60 * y[:, None, None, None], y=y)
    return path


def story(path, lines=60, seed=0):
    """Words of which each tells a little of the next."""
    rng = np.random.default_rng(seed)
    path.write_text("".join(" ".join(f"w{k}" for k in np.cumsum(rng.integers(3, size=8)) % 11) + "\n" for _ in range(lines)))
    return path


def sentences(path, n=55, seed=0):
    """Columns of word, number and tag; a chunk lies between theA or theB, which tells its kind, and z."""
    rng, lines = np.random.default_rng(seed), []
    for _ in range(n):
        for _ in range(rng.integers(1, 4)):
            kind, word, inner = "AB"[rng.integers(2)], rng.integers(5), rng.integers(3)
            lines += [f"the{kind} 1 O", f"w{word} 1 B-{kind}", *[f"w{word} 1 I-{kind}"] * inner, "z 1 O"]
        lines.append("")
    path.write_text("\n".join(lines))
    return path


def files(folder) -> dict:
    """Training data of each task, and held-out data as "TASK.test"."""
    x, y = rows(2, n=490)
    return {"linear": svmlight(folder / "a.svm", x[90:], y[90:]), "mlp": pictures(folder / "a.npz", n=300),
            "cnn": pictures(folder / "b.npz", n=120), "lm": story(folder / "a.txt", lines=120),
            "tagger": sentences(folder / "b.conll", n=60), "tagger.test": sentences(folder / "c.conll", n=30, seed=1),
            "linear.test": svmlight(folder / "c.svm", x[:90], y[:90]), "mlp.test": pictures(folder / "c.npz", seed=1),
            "cnn.test": pictures(folder / "c.npz", seed=1), "lm.test": story(folder / "c.txt", seed=1)}


def options(name, folder, batch=6, **more):
    """(task, options) of one of NAMES, its data in `folder`."""
    common = {"batch": batch, "holdout": 0.2, **more}
    if name.startswith("mlp"):
        return "mlp", MlpOptions(pictures(folder / "a.npz"), width=10, layer_norm=name == "mlp-norm", **common)
    if name == "cnn":
        return "cnn", CnnOptions(pictures(folder / "a.npz"), channels=3, **common)
    if name.startswith("lm"):
        kind = {"network": "transformer", "heads": 2, "hidden": 8} if name == "lm-transformer" else {"hidden": 7}
        return "lm", LmOptions(story(folder / "a.txt"), bptt=4, tied=name == "lm-tied", **{**kind, **common})
    if name.startswith("tagger"):
        decoder = "crf" if name == "tagger-crf" else "softmax"
        return "tagger", TaggerOptions(sentences(folder / "a.conll"), decoder=decoder, **{"hidden": 6, **common})
    classes = {"logistic": 2, "huber": 0}.get(name, 4)
    loss = name if name in ("softmax", "huber") else "logistic"
    path = svmlight(folder / "a.svm", *rows(classes))
    return "linear", LinearOptions(path, loss=loss, transform="log", cache=False, **common)


def made(name, folder, rank=0, size=1, **more):
    return build(*options(name, folder, **more), rank, size)


def taken(task, k) -> tuple:
    """(loss sum, examples, gradients by name, in the order in which they were handed over)."""
    given = {}

    def ready(tensor, gradient):
        assert tensor not in given and gradient.dtype == np.float32 and gradient.ndim == 1
        given[tensor] = gradient.copy()
    loss, count = task.step(k, ready)
    assert set(given) == set(task.tensors())
    return loss, count, given


def trained(task, epochs, lr):
    """The task after steps of AdaGrad."""
    w, squares = task.tensors(), {tensor: np.full_like(flat, 1e-12) for tensor, flat in task.tensors().items()}
    for epoch in range(1, epochs + 1):
        task.begin(epoch)
        for k in range(task.steps):
            for tensor, gradient in taken(task, k)[2].items():
                squares[tensor] += gradient**2
                w[tensor] -= np.float32(lr) * gradient / np.sqrt(squares[tensor])
    return task


def dense(task):
    """(x, labels) of a linear task's training rows, as a matrix."""
    x = np.zeros((task.train.rows, task.train.n_features))
    for i in range(task.train.rows):
        own = slice(*task.train.indptr[i:i + 2])
        x[i, task.train.indices[own]] = task.train.values[own]
    return x[task.rows], task.model.labels[task.rows]


class Together:
    """Stands for the communicator of ranks that come one after the other: the last one has the whole sum."""

    def __init__(self):
        self.parts = []

    def Allreduce(self, part, total):
        self.parts.append(part.copy())
        total[...] = sum(self.parts)
