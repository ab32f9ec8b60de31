"""Another way to measure single layers, for the length of a test."""

from dataclasses import replace

from autolora.timing.kinds import WORKBENCHES


def measure_layers_with(monkeypatch, **changes):
    """Replaces members of the workbench of single layers."""
    monkeypatch.setitem(WORKBENCHES, "layer", replace(WORKBENCHES["layer"], **changes))
