"""What tests/torture/__main__.py does to the project: kills, damaged files, files of strangers."""
