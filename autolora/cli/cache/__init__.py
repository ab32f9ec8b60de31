"""The commands of ``autolora cache``, one file each."""
