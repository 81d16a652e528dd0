"""Exact solvers: heads that are found without gradient steps of their own."""

from flaxhead.solvers.discriminant import discriminant, discriminant_params
from flaxhead.solvers.logistic import (
    LogisticPieces,
    PathInfo,
    logistic,
    logistic_path,
    logistic_pieces,
)
from flaxhead.solvers.neighbours import neighbours
from flaxhead.solvers.prototypes import (
    PROTOTYPE_HEADS,
    prototype_params,
    prototypes,
)
from flaxhead.solvers.ridge import (
    LeaveOneOut,
    ridge,
    ridge_leave_one_out,
    ridge_params,
    ridge_path,
)

__all__ = [
    "PROTOTYPE_HEADS",
    "LeaveOneOut",
    "LogisticPieces",
    "PathInfo",
    "discriminant",
    "discriminant_params",
    "logistic",
    "logistic_path",
    "logistic_pieces",
    "neighbours",
    "prototype_params",
    "prototypes",
    "ridge",
    "ridge_leave_one_out",
    "ridge_params",
    "ridge_path",
]
