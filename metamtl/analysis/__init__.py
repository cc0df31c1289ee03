"""What derivatives say about tasks: relatedness, grouping, conflict, convergence, adaptation.

Functions are exact unless their docstring says otherwise. They change nothing: not the model, not `.grad`,
not the random generators. Every result has `plot()`, `log(writer, step)`, `as_dict()` and `scalars()`.
"""

from .curvature import Spectrum, curvature_overlap, mixed_second_derivatives, spectrum
from .directional import Derivatives, directional_derivatives
from .gradients import Gradients, gradients
from .grouping import Grouping, best_groups, spectral_groups
from .look_ahead import linearized, look_ahead
from .relatedness import Relatedness, cosine, cosine_by_layer, gramian, transfer
from .result import History, Result
from .similarity import cka
from .sketch import Sketch

__all__ = [
    "Derivatives",
    "Gradients",
    "Grouping",
    "History",
    "Relatedness",
    "Result",
    "Sketch",
    "Spectrum",
    "best_groups",
    "cka",
    "cosine",
    "cosine_by_layer",
    "curvature_overlap",
    "directional_derivatives",
    "gradients",
    "gramian",
    "linearized",
    "look_ahead",
    "mixed_second_derivatives",
    "spectral_groups",
    "spectrum",
    "transfer",
]
