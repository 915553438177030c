"""Influence summed by group of rows, with confidence intervals."""
