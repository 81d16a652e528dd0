"""Exact solvers: heads that are found without gradient steps of their own."""

from flaxhead.solvers.discriminant import (
    discriminant,
    discriminant_params,
    discriminant_passes,
)
from flaxhead.solvers.logistic import (
    LogisticPieces,
    PathInfo,
    logistic,
    logistic_path,
    logistic_pieces,
)
from flaxhead.solvers.neighbours import neighbours
from flaxhead.solvers.passes import Passes
from flaxhead.solvers.prototypes import (
    PROTOTYPE_HEADS,
    prototype_params,
    prototype_passes,
    prototypes,
)
from flaxhead.solvers.ridge import (
    LeaveOneOut,
    ridge,
    ridge_leave_one_out,
    ridge_params,
    ridge_passes,
    ridge_path,
)

__all__ = [
    "PROTOTYPE_HEADS",
    "LeaveOneOut",
    "LogisticPieces",
    "Passes",
    "PathInfo",
    "discriminant",
    "discriminant_params",
    "discriminant_passes",
    "logistic",
    "logistic_path",
    "logistic_pieces",
    "neighbours",
    "prototype_params",
    "prototype_passes",
    "prototypes",
    "ridge",
    "ridge_leave_one_out",
    "ridge_params",
    "ridge_passes",
    "ridge_path",
]
