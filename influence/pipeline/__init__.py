"""From a configuration to a finished run, on a Dask cluster: plan, capture, curvature, index."""
