"""Per-example gradients of a frozen model, captured by hooks and projected without being formed."""
