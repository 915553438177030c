"""Selection of rows to train on (LESS)."""
