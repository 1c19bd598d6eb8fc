"""Parity made evidence."""
