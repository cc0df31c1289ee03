"""Formulas of the methods that TorchJD computes.

`g_t` is the gradient of task t and `L_t` its loss, `G` the Gramian with entries `<g_s, g_t>`, and `d` the
direction.
"""

from __future__ import annotations

FORMULAS: dict[str, str] = {
    "AlignedMTL": (
        "`d = sum_t w_t g_t`, `w = sqrt(lambda) G^(-1/2) u`, `u_t = 1/T`, with `lambda` the smallest "
        "positive eigenvalue of `G`"
    ),
    "CAGrad": (
        "`d = g_0 + c |g_0| g_w / |g_w|` with `g_0` the mean, `g_w = sum_t w_t g_t`, and `w` on the "
        "simplex minimizing `<g_w, g_0> + c |g_0| |g_w|`"
    ),
    "COSMOS": "`d` is the gradient of `sum_t w_t L_t - lambda <w, L> / (|w| |L|)`",
    "ConFIG": "`d = sum_t <g_t, u> u`, where the unit vector `u` has the same cosine with all `g_t`",
    "DualProj": "`d` is the vector nearest to `1/T sum_t g_t` with `<d, g_t> >= 0` for all t",
    "ExcessMTL": (
        "`d = sum_t w_t g_t`, `w_t <- w_t exp(robust_step_size e_t) / Z`, `e_t` the sum over entries of "
        "`g_t^2 / sqrt(s_t)`, with `s_t` the sum of `g_t^2` over the calls, divided by its first value"
    ),
    "FairGrad": "`d = sum_t w_t g_t` with `(G w)_t = w_t^(-1/alpha)`",
    "GeometricMean": "`d` is the gradient of `(L_1 ... L_T)^(1/T)`",
    "GradDrop": (
        "each entry of `d` sums the positive entries of the `g_t` with probability `(1 + sum_t g_t / "
        "sum_t |g_t|) / 2`, otherwise the negative ones"
    ),
    "GradVac": (
        "`d = sum_t h_t`; `h_t = g_t`, then for all other s in random order, if `c = cos(h_t, g_s)` is "
        "below its running mean `m`: `h_t <- h_t + |h_t| (m sqrt(1 - c^2) - c sqrt(1 - m^2)) / (|g_s| "
        "sqrt(1 - m^2)) g_s`"
    ),
    "IMTLG": (
        "`d = sum_t w_t g_t`, `w = v / sum_t v_t`, `G v = n`, `n_t = |g_t|`: all `<d, g_t> / |g_t|` are "
        "equal"
    ),
    "IMTLL": "`d = sum_t exp(s_t) g_t`; the `s_t` minimize `sum_t exp(s_t) L_t - s_t`",
    "Krum": (
        "`d` is the mean of the `n_selected` gradients with the smallest sums of distances to their `T - "
        "n_byzantine - 2` nearest others"
    ),
    "MGDA": "`d = sum_t w_t g_t` with `w` on the simplex minimizing `|d|`",
    "MoDo": (
        "`d = sum_t w_t g_t`, `w <- P(w - gamma (G w + rho w))` with `P` the projection onto the simplex"
    ),
    "PBI": "`d` is the gradient of `a + theta |L - a w / |w||`, `a = <L, w> / |w|`",
    "PCD": (
        "`d = |g_1| e / |e|`, `h_t = g_t / sqrt(v_t)` with `v_t` the running mean of `|g_t|^2`, `e` the "
        "vector nearest to `h_1` with `<e, h_t> >= tau |h_t|^2` for all other t"
    ),
    "PCGrad": (
        "`d = sum_t h_t`; `h_t = g_t`, then for all other s in random order, if `<h_t, g_s> < 0`: `h_t <- "
        "h_t - <h_t, g_s> / |g_s|^2 g_s`"
    ),
    "Random": "`d = sum_t w_t g_t`, `w = softmax(z)`, `z` standard normal in every call",
    "SDMGrad": (
        "`d = sum_t (w_t + lambda / T) / (1 + lambda) g_t`, with `w` on the simplex after `n_iter` "
        "projected gradient steps that decrease `|d|`"
    ),
    "STCH": "`d` is the gradient of `mu log sum_t exp(w_t L_t / mu)`",
    "Sum": "`d = sum_t g_t`",
    "TrimmedMean": (
        "each entry of `d` is the mean of the entries of the `g_t` without the `trim_number` largest and "
        "smallest"
    ),
    "UPGrad": (
        "`d = 1/T sum_t P(g_t)`, where `P(v)` is the vector nearest to `v` with `<P(v), g_s> >= 0` for "
        "all s"
    ),
    "UW": "`d = 1/2 sum_t exp(-s_t) g_t`; the `s_t` minimize `1/2 sum_t exp(-s_t) L_t + s_t`",
}
