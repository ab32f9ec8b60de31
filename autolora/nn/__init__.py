"""LoRA layers, PEFT's and ours: the graph that each runs, and why."""
