"""What the commands print: tables, figures, and safe text."""
