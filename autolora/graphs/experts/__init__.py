"""Graphs of a mixture's experts: those of one layer, each of whose products has an executor."""
