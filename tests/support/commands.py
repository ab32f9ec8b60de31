"""A model file to tune, and the outcome of a command."""

import json

MODEL = """
import torch
from torch import nn
print("loading")
model = nn.Sequential(nn.Embedding(16, 8), nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 8))
def example_inputs(batch_size, seq_len):
    return torch.zeros(batch_size, seq_len, dtype=torch.long)
"""
QUICK = ("--rank", "2", "--effort", "quick", "--batch-size", "2", "--seq-len", "8")


class Completed:
    """The exit code and output of a command."""

    def __init__(self, code: int, out: str, err: str) -> None:
        self.code, self.out, self.err = code, out, err

    def assert_one_error(self, message):
        """It has failed with one clear error, and nothing else."""
        assert self.code == 2
        assert self.out == ""
        assert self.err.count("autolora: error: ") == 1
        assert message in self.err
        assert "Traceback" not in self.err

    @property
    def json(self):
        return json.loads(self.out)
