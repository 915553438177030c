"""Scores summed by group, with confidence intervals."""
