"""Graphs: the ways to compute a problem, their costs, their source, and running them."""
