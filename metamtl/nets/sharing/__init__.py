"""Architectures that share parameters between named tasks."""

from .branching import Branching
from .cascade import Cascade
from .cooperative import Cooperative
from .cross_stitch import CrossStitch
from .dselect_k import DSelectK, smooth_step
from .hierarchical import Hierarchical
from .mixture import Constant
from .mmoe import MMoE
from .mtan import MTAN
from .named import NamedTasks
from .named_heads import NamedHeads, named_heads
from .ple import PLE
from .reversal import reverse_gradient
from .shared_bottom import SharedBottom
from .shared_private import SharedPrivate
from .soft_sharing import SoftSharing

__all__ = [
    "MTAN",
    "PLE",
    "Branching",
    "Cascade",
    "Constant",
    "Cooperative",
    "CrossStitch",
    "DSelectK",
    "Hierarchical",
    "MMoE",
    "NamedHeads",
    "NamedTasks",
    "SharedBottom",
    "SharedPrivate",
    "SoftSharing",
    "named_heads",
    "reverse_gradient",
    "smooth_step",
]
