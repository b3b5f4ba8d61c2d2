"""Localization of actions and evaluation of detections. Needs no PyTorch."""
