"""Errors of domains."""

from m2ost_contract import M2OSTError


class DomainsError(M2OSTError):
    """Domains cannot be found or compared; the message names the file, what is wrong with it, and the remedy."""
