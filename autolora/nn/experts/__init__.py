"""A mixture's experts: modules of transformers whose stacked weights PEFT adapts."""
