"""Tasks and those who do them: clusters, submission, retry, interruption, progress."""
