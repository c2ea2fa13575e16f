"""Stored features joined with their data set, in the forms that people train from."""

from featurestore.features.features import Features
from featurestore.features.stored import one_stored, stored

__all__ = ["Features", "one_stored", "stored"]
