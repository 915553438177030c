"""The demo: a model trained on this computer's own Python documentation, with planted facts to trace."""
