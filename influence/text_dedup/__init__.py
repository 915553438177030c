"""Texts that repeat one another: shingles, MinHash, pairs."""
