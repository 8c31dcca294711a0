"""Videos in, checked tar shards and a manifest out."""
