"""Thin shells that give the machines a link, a clock and a worker."""
