"""The rows of a run on disk: checksummed shards of unit gradients, their metadata, and a manifest.

Reading path: `manifest` (properties of the rows), `codec` and `codecs` (encoding of a direction), `shard` (the files of
one shard), `writer`, `commits` (committed shards), `reader`. Numpy, safetensors and parquet; no torch, and nothing is
unpickled.
"""
