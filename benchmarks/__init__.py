"""Measurements side by side with what a user would do without featurestore."""
