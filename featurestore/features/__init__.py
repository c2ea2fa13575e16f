"""Stored features joined with their data set, in the forms used for training."""

from featurestore.features.features import Features
from featurestore.features.stored import stored, without_boundaries

__all__ = ["Features", "stored", "without_boundaries"]
