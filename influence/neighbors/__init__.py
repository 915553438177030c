"""Every row's nearest rows."""
