"""What lies elsewhere: stores that are read where they are, and what is published under a name.

In: an address or a name.  Out: a folder on this machine that the rest of the package reads as any other.
"""
