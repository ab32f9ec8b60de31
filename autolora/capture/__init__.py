"""Capture: from a model to the problems of its LoRA layers in training."""
