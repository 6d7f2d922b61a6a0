"""Faults on purpose: flipped bits, exchanged units, kills at any file operation, full disks, files that lie.

In: small sound outputs of every verb.  Out: counts of what came of each fault.

    python -m tests.faults            a sample, in a minute
    python -m tests.faults --large    thousands
"""
