"""What the tools share: regimes, models, arguments, timing in turn, and result files."""
