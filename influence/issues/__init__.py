"""Checks of the data's quality: one table with a line per row."""
