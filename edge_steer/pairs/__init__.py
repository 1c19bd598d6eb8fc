"""Contrastive pairs and how they are made."""
