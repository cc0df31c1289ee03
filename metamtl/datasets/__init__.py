"""Download, verify, prepare and preprocess data sets: from official files to arrays."""

from .vocabulary import Vocabulary

__all__ = ["Vocabulary"]
