"""Any number of rows, scored from disk to disk."""

from flaxhead.bulk.predict import predict_files

__all__ = ["predict_files"]
