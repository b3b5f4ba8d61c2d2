"""Fault rig: kills trainings, damages files and writes hostile ones; see `python -m tests.torture --help`."""
