"""Rows and queries from a model: the session, its batches, projected gradients, exact scores."""
