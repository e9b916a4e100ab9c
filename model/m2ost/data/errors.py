"""Errors of data sets."""

from m2ost_contract import M2OSTError


class DataError(M2OSTError):
    """A data set cannot be used as it is; the message names the file, the row or gene, and the remedy."""
