"""Parts of a training run: folder, log, ranks that train together, and stop signal."""
