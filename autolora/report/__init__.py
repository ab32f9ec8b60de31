"""Reports: figures and a page made from cache records and results."""
