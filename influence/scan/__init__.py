"""Every row against many queries."""
