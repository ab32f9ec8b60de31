"""Weights that are split over the ranks of a process group."""
