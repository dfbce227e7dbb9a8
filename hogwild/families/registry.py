"""The problem families by name, imported when asked for: a new family is its own files and one entry here."""

import importlib
from typing import NamedTuple

from hogwild.errors import UserError
from hogwild.training import model_files


class Entry(NamedTuple):
    """What is known of a family without its code."""

    module: str  # that has a FAMILY, an object with the methods of hogwild.families.family.Family
    summary: str  # its line of `hogwild --help`
    data: str = "[DATA]"  # DATA: needed; [DATA]: there are data without


FAMILIES = {
    "linear": Entry("hogwild.families.linear_family", "train a sparse linear model (no DATA: on synthetic data)"),
    "mf": Entry("hogwild.families.mf_family", "factorize a matrix of ratings (no RATINGS: synthetic ones)", "[RATINGS]"),
    "torch": Entry("hogwild.families.torch_family", "train a torch model of your own", "MODULE:FUNCTION"),
}


def family(name):
    """The Family `name`, its module imported. Raises UserError where there is none."""
    if name not in FAMILIES:
        raise UserError(f"unknown problem family '{name}': choose from {', '.join(FAMILIES)}")
    return importlib.import_module(FAMILIES[name].module).FAMILY


def load(path):
    """The FittedModel in a model file, which names its family. Raises UserError."""
    tensors, header = model_files.load(path)
    name = header.get("family")
    if not isinstance(name, str) or name not in FAMILIES:
        raise UserError(f"{path}: is a model of family {name!r}, hogwild knows {', '.join(FAMILIES)}")
    return family(name).load(path, tensors, header)
