"""Obviously correct twins of the fast paths: slow, short and in float64."""
