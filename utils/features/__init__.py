"""Feature stores: precomputed snippet features of a video, in whatever format they are stored."""

from utils.features.store import FeatureStore, open_features

__all__ = ["FeatureStore", "open_features"]
