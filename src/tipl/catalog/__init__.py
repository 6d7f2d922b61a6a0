"""Stores as things with names: cards, lists, collections of stores, and stores made of other stores or of checkpoints.

In: stores, folders of stores, folders of checkpoints.  Out: cards, manifests, new stores that appear whole.

    card.py         STORE/README.md: what a store holds, its license, how it was made, how to cite it
    listing.py      the stores below a folder, a row each
    manifest.py     COLLECTION/manifest.jsonl: many stores as one collection, read without opening one
    copies.py       stores made of the trials of others: merge, export
    checkpoints.py  the tensors of a checkpoint, in whatever format, without running what is in it
    sequence.py     which files of a folder are the checkpoints of one run, and their steps
    networks.py     which of these tensors act, and whether they are a policy that can be run
    importing.py    a store made of checkpoints
"""
