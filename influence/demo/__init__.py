"""The demo: a model trained on the Python documentation of this machine and on planted facts."""
