"""Where episodes come from. A source has `.split("train" | "validation" | "test")`; a split samples."""

from .few_shot import FewShot
from .glyph_attributes import GlyphAttributes
from .glyphs import Glyphs
from .omniglot import Omniglot
from .sinusoid import Sinusoid

__all__ = ["FewShot", "GlyphAttributes", "Glyphs", "Omniglot", "Sinusoid"]
