"""A run from its settings to its index: the stages of a build, in order."""
