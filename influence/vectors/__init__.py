"""Comparison of stored rows and queries: curvature first, then length, then one inner product."""
