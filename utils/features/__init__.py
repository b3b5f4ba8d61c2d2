"""Feature stores: precomputed snippet features by video, in any supported format."""

from utils.features.store import FeatureStore, open_features

__all__ = ["FeatureStore", "open_features"]
