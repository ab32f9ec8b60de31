"""Freezing: layers choose from a plan in memory, on which the ranks of a group agree."""
