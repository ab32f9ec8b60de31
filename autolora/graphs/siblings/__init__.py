"""Graphs of sibling layers, composed of those of each layer and of what is computed together."""
