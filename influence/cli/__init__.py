"""The command line: one file per verb. Only this room prints."""
