"""The rows of a run on disk: checksummed shards of unit gradients, their metadata, and a manifest.

Reading path: `manifest` (what the rows are), `codec` and `codecs` (how a direction is kept), `shard` (the files of one
shard), `partial` and `digest` (whole or absent, and unchanged), `writer`, `commits` (what is there), `reader`. Numpy,
safetensors and parquet; no torch, and nothing is ever unpickled.
"""
