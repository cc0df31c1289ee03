"""Files that `metamtl init` copies."""
