"""Bytes on topics: the link to a broker."""
