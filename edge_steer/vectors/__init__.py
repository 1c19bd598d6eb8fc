"""Vector files of every tool, in and out."""
