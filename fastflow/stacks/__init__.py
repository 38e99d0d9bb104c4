"""Drop-in acceleration of other people's models: one file per stack says what is known of it."""

from fastflow.stacks.walk import AccelerateError, Entry, Report, accelerate, revert

__all__ = ["AccelerateError", "Entry", "Report", "accelerate", "revert"]
