"""From a stored row to a comparable vector: curvature first, then length, then one plain inner product."""
