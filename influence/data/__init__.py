"""From files to batches: rows (`dataset`), one row or query (`example`), tokens (`tokenise`), padding (`batch`)."""
