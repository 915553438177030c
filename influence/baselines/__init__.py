"""Baselines: rankings that do not use the model's gradients."""
