"""Measures of quality: predictions of scores compared with retrained models."""
