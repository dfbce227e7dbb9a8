"""What the programs for ranks have in common, over MPI or torch's process groups; it starts neither."""

import numpy as np

from hogwild.errors import UserError
from sparsecomm.config import Config


def raises(words, call):
    """Call, which must raise UserError: one line with all the `words`."""
    try:
        call()
    except UserError as error:
        assert all(word in str(error) for word in words) and "\n" not in str(error), error
    else:
        raise AssertionError(f"no error with {words}")


def flat(net):
    """The parameters of a torch module, float32[n]."""
    return np.concatenate([p.detach().cpu().numpy().ravel() for p in net.parameters()])


def configured(options, **defaults) -> tuple[Config, dict]:
    """(the configuration that `options` give over `defaults`, those options that are none of its fields)."""
    fields = {name: value for name, value in options.items() if name in Config.__dataclass_fields__}
    return Config(**{**defaults, **fields}), {name: value for name, value in options.items() if name not in fields}
