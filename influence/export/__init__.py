"""Export of the cleaned data set, and its undo."""
