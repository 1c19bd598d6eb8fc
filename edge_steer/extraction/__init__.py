"""Pairs to a steering vector."""
