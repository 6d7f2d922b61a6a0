"""What people look at: policies that move, the path in weight space, learning curves.

In: stores and policies.  Out: videos and pictures.
"""
