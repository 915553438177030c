"""Per-example gradients of a frozen model, captured by hooks and projected before they are ever formed."""
