"""Lookup: which graph the records of the search path name for a problem."""
