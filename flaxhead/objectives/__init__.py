"""What is minimised: a batch -> sums and counts."""

from flaxhead.objectives.supervised import supervised

__all__ = ["supervised"]
