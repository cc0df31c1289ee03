"""Utilities of the commands."""
