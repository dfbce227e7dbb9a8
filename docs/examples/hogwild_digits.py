import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional as F

import hogwild.torch


def make_model():
    return nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 10))


def make_data():
    x, y = load_digits(return_X_y=True)
    x, y = torch.tensor(x / 16, dtype=torch.float32), torch.tensor(y)
    return (x[:1500], y[:1500]), (x[1500:], y[1500:])


def loss(model, batch):
    x, y = batch
    return F.cross_entropy(model(x), y)


def metrics(model, batch):
    x, y = batch
    return {"accuracy": (model(x).argmax(1) == y).float().mean()}


def task():
    return hogwild.torch.Task(make_model, make_data, loss, metrics, batch=32)


if __name__ == "__main__":
    model, history = hogwild.torch.train(make_model, make_data, loss, "adam", 0.002, metrics=metrics, batch=32, workers=2,
                                         epochs=10)
    print(history[-1].steps, "steps in the last epoch")
