"""Estimates of a build's time, memory and disk, measured on a few rows."""
