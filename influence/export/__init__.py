"""The cleaned data set, and its undo."""
