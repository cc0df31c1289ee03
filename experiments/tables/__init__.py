"""Tables of recorded results, as Markdown."""
