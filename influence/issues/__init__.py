"""What is wrong with the rows: a table, a row an issue."""
