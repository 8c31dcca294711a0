"""Packing data sets: videos in, checked tar shards and a manifest out."""
