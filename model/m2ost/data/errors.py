"""Errors of data sets."""


class DataError(Exception):
    """A data set cannot be used as it is; the message names the file, the row or gene, and the remedy."""
