"""edge-steer inside other tools."""
