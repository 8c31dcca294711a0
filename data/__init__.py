"""Video data sets, independent of the model trained on them: packed into tar shards, read back as uint8 clips.

`pack` writes shards and a manifest; `loader` decides the sample order, then reads, decodes and crops the samples.
The on-disk formats are described in docs/data.md.
"""
