"""Nearest neighbours by inner product, most positive and most negative, over numbered float rows.

numpy and faiss only: this package knows nothing of gradients or of `influence`. A *row* is a position in what was
indexed, 0…rows-1; whoever calls maps it to a document. Three ways to search; the first two give one answer, bit for
bit:

    exact.exact_search   one pass over blocks of vectors, nothing kept: for stores that are read once, or without faiss
    build.build          a FAISS flat index in memory; search.search asks it, persist.save and persist.load keep it
    approximate.search   codes on disk propose, the stored rows decide: nearly all of the best rows, with their true
    scores

An approximate index is made in steps, each of which is committed to disk and not done twice:

    factory.plan_factory → approximate.train → approximate.parts, one task a part → approximate.merge →
    approximate.recall

The vectors' scale is the caller's: hand in unit vectors and the inner product is the cosine. Rows of very different
lengths keep their recall: see `approximate.cells`.
"""
