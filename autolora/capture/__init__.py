"""Capture: from a model to the problems that its LoRA layers pose in training."""
