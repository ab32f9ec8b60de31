"""Sibling layers: found by what they are called with, and run along one graph."""
