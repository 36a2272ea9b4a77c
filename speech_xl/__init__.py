"""The shared core of Speech-XL: it decides, and a backend computes.

Importing any module of this package loads no deep-learning framework and no user-interface library.
"""

__version__ = "0.1.0"
