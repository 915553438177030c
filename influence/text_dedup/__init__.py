"""Duplicate texts: shingles, MinHash, pairs."""
