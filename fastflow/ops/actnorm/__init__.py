"""Activation normalisation: one shift and one scale per channel."""
