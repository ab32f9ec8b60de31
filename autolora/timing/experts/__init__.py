"""Measuring the graphs of a mixture's experts."""
