"""Rows to figures, sweeps and plots."""
