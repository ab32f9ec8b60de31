"""Problems: all that decides which graphs are valid and how long they take, except the machine.

``base`` is the interface of every kind of problem, and all that cache, lookup, tuner, cluster and
command line know of one. ``kinds`` lists the kinds: ``layer`` is a single LoRA layer, ``siblings``
are several with one X, and ``experts`` are the stacked weights of a mixture.
"""

from autolora.problem.base import COMPILED, DEVICES, DTYPES, EAGER, MODES, BaseProblem
from autolora.problem.experts import IMPLEMENTATIONS, LOADS, Experts, at_loads
from autolora.problem.layer import (
    GRADIENTS,
    LAYOUTS,
    PLAIN_GRADIENTS,
    QUANTISED,
    VARIANTS,
    Problem,
)
from autolora.problem.siblings import Siblings

__all__ = [
    "COMPILED",
    "DEVICES",
    "DTYPES",
    "EAGER",
    "GRADIENTS",
    "IMPLEMENTATIONS",
    "LAYOUTS",
    "LOADS",
    "MODES",
    "PLAIN_GRADIENTS",
    "QUANTISED",
    "VARIANTS",
    "BaseProblem",
    "Experts",
    "Problem",
    "Siblings",
    "at_loads",
]
