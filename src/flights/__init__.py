"""The example model: will a flight out of New York arrive more than 15 minutes late, asked two hours before departure?

Delete this folder and its tests, and put your own package in its place: the line reaches it only through ``PROJECT``.
"""

from flights.project import PROJECT

__all__ = ["PROJECT"]
