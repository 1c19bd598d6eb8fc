"""What a MODEL names: as a file, and running."""
