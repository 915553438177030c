"""How many numbers a processor computes with at once."""

LANES = 16
"""Numbers of a processor's vector, or of several shorter ones."""
