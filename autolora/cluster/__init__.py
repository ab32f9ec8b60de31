"""The ranks of one tuning run: what each works on, and whether it is alive."""
