"""Modules that the entry points share."""
