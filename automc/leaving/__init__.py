"""Compressed models in files that other programs read: one file a format, and what they share."""
