"""Stored features joined with their data set, in the forms that people train from."""

from featurestore.features.joined import Features

__all__ = ["Features"]
