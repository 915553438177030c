"""What a build takes, measured on a few rows."""
