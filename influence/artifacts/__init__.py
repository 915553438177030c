"""Files of a run, in a local folder or in a bucket: locations, commits, locks, output files.

`place` turns the text that a user typed into a path; `path` is the interface of both kinds of path, over any fsspec
filesystem; `s3` is S3 with its errors as messages; `access` holds what differs between the two when files are read,
listed and written.
"""
