"""Timing: from a problem to a record, on one device. Knows neither models nor files."""
