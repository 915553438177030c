"""Scores of every row for many queries."""
