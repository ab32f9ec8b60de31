"""Cache files: where they are, and how they are read, locked and written."""
