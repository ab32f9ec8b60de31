"""A model of one LoRA layer and records for it, for the tests of frozen and of strict models."""

import torch
from records import REFERENCE, make_record
from torch import nn

import autolora
from autolora.environment import Environment
from autolora.problem import Problem

# What the layer poses in training; its input needs no gradient.
LAYER = Problem(24, 16, 1, 4, "float32", "cpu", bias=True, gradients=("A", "B"))
TALL = "base_first/h=saved/dA=via_z/dB=via_h/t=h"


def model(**options):
    return autolora.add_lora(nn.Sequential(nn.Linear(24, 16)), rank=4, **options)


def record_of(winner, tokens=8, environment=None, **changes):
    """A record for the layer that one of two graphs has won."""
    times = {REFERENCE: 3000, TALL: 3000, winner: 2000}
    here = environment or Environment.of("cpu")
    return make_record(times=times, problem=LAYER.at(tokens), environment=here, **changes)


def ran(net, tokens=8):
    """One training step of a model; the graph that its layer took, the reason and the detail."""
    net(torch.randn(tokens, 24)).sum().backward()
    choices = net[0]._autolora.choices.values()
    choice = next(choice for choice in choices if choice.problem == LAYER.at(tokens))
    return choice.graph.name, choice.reason, choice.detail
