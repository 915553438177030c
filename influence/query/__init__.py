"""One question's way from a prompt and a completion to its hits, as tables, documents and pages."""
