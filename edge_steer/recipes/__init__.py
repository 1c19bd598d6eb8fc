"""A vector from its recipe, end to end."""
