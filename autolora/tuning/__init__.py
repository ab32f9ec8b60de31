"""Tuning: many problems, in order and within a budget."""
