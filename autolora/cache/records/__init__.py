"""Records: what was measured for one problem, its JSON form, and which of two is better."""
