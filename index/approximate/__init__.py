"""An approximate index: trained once, filled in parts, merged on disk. Codes propose rows, the stored rows decide."""
