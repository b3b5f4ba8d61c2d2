"""Features from video files: decode, resample by time, resize, compute flow, run a backbone, write features.h5."""
