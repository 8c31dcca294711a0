"""Video data sets, independent of what is trained on them: packed into tar shards, read back as uint8 clips.

`pack` writes shards and a manifest; `loader` plans the order of samples, reads, decodes and crops them.
The formats on disk are described in docs/data.md.
"""
