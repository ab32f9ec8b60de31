"""Ranks of one process that share a store, on a clock that the test moves."""

import torch
from made_up_clock import Clock

from autolora.cluster.ranks import Cluster


def ranks(size, clock=None, store=None):
    """Clusters of one process that share a store, and have no threads."""
    clock, store = clock or Clock(), store or torch.distributed.HashStore()
    return [Cluster(store, rank, size, clock=clock, pause=clock.pause) for rank in range(size)]
