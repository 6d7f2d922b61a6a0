"""What ties TIPL to other libraries, each an extra of its own.

In: their objects.  Out: recorders and accelerators in their terms.
"""
