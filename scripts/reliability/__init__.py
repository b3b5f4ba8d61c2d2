"""What scripts/torture.py does to the project: kills, damaged files, files of strangers."""
