"""Nearest neighbours by inner product, most positive and most negative, over numbered float rows.

numpy and faiss only: this package knows nothing of gradients or of `influence`. A *row* is a position in what was
indexed, 0…rows-1; whoever calls maps it to a document. Two ways to search, one answer, bit for bit:

    exact.exact_search   one pass over blocks of vectors, nothing kept: for stores that are read once, or without faiss
    build.build          a FAISS flat index in memory; search.search asks it, persist.save and persist.load keep it

The vectors' scale is the caller's: hand in unit vectors and the inner product is the cosine.
"""
