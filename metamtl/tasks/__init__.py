"""Sources of tasks: `source.split("train" | "validation" | "test")` returns tasks with `sample()`."""

from .adult import Adult
from .cifar100 import CIFARFS, FC100
from .cifar100_superclasses import CIFARSuperclasses
from .clinc150 import Clinc150
from .easy_vqa import EasyVQA
from .episode_loader import EpisodeLoader
from .few_shot import FewShot
from .glyph_attributes import GlyphAttributes
from .glyphs import Glyphs
from .grouped import GroupedTasks
from .image_folder import ImageFolder
from .labeled import LabeledTasks
from .lazy import LazyFewShot
from .mixture import TaskMixture
from .multimnist import MultiMNIST
from .omniglot import Omniglot
from .omniglot_alphabets import OmniglotAlphabets
from .parkinsons import Parkinsons, Patients
from .sinusoid import Sinusoid
from .text_trio import TextTrio
from .tox21 import Tox21

__all__ = [
    "Adult",
    "CIFARFS",
    "CIFARSuperclasses",
    "Clinc150",
    "EasyVQA",
    "EpisodeLoader",
    "FC100",
    "FewShot",
    "GlyphAttributes",
    "Glyphs",
    "GroupedTasks",
    "ImageFolder",
    "LabeledTasks",
    "LazyFewShot",
    "MultiMNIST",
    "Omniglot",
    "OmniglotAlphabets",
    "Parkinsons",
    "Patients",
    "Sinusoid",
    "TaskMixture",
    "TextTrio",
    "Tox21",
]
