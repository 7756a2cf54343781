"""Clearway: the line from raw data to production traffic. It knows nothing of any data set."""

__version__ = "0.1.0"
