"""What derivatives say about tasks: relatedness, grouping, conflict, convergence, adaptation.

Functions are exact unless their docstring says otherwise. They change nothing: not the model, not `.grad`,
not the random generators. Every result has `plot()`, `log(writer, step)`, `as_dict()` and `scalars()`.
"""

from .adaptation import AdaptationReport, adaptation
from .aggregator_check import AggregatorReport, check_aggregator
from .conflict import Branches, Conflict, conflict
from .convergence import Descent, descent
from .curvature import Spectrum, curvature_overlap, mixed_second_derivatives, spectrum
from .directional import Derivatives, directional_derivatives
from .generalization import Generalization, generalization
from .gradients import Gradients, gradients
from .grouping import Grouping, best_groups, spectral_groups
from .landscape import Line, Surface, line, surface
from .look_ahead import linearized, look_ahead
from .negative_transfer import NegativeTransfer, negative_transfer
from .numerics import Numerics, check_numerics
from .relatedness import Relatedness, cosine, cosine_by_layer, gramian, transfer
from .result import History, Result
from .similarity import cka
from .sketch import Sketch

__all__ = [
    "AdaptationReport",
    "AggregatorReport",
    "Branches",
    "Conflict",
    "Derivatives",
    "Descent",
    "Generalization",
    "Gradients",
    "Grouping",
    "History",
    "Line",
    "NegativeTransfer",
    "Numerics",
    "Relatedness",
    "Result",
    "Sketch",
    "Spectrum",
    "Surface",
    "adaptation",
    "best_groups",
    "check_aggregator",
    "check_numerics",
    "cka",
    "conflict",
    "cosine",
    "cosine_by_layer",
    "curvature_overlap",
    "descent",
    "directional_derivatives",
    "generalization",
    "gradients",
    "gramian",
    "line",
    "linearized",
    "look_ahead",
    "mixed_second_derivatives",
    "negative_transfer",
    "spectral_groups",
    "spectrum",
    "surface",
    "transfer",
]
