"""Which layers get adapters; adapters as files of PEFT's format, and in the weights."""
