"""The timing cache: records, the files that hold them, and the search for an answer."""
