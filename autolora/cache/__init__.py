"""The timing cache: records, the files that hold them, and how a file is searched for an answer."""
