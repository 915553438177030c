"""Runs on an object store: what a user typed to a path, and paths into a bucket that read and write as local ones do.

`place` decides which of the two a text is; `path` is the interface that both share, over any fsspec filesystem; `s3` is
S3's, with its errors in words; `access` is what differs between the two when files are read, listed and written.
"""
