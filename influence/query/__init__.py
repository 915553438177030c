"""One query: from prompt and completion to hits, as tables, documents and pages."""
