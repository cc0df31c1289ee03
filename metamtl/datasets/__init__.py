"""From official files to arrays: download, verification, preparation, preprocessing."""

from .vocabulary import Vocabulary

__all__ = ["Vocabulary"]
