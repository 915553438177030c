"""Curvature: prepared once into a frozen state, applied to many queries."""
