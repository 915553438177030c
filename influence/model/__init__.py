"""Models: loading from a folder, freezing, checks, and the choice of tracked layers."""
