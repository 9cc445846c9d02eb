"""Recordings on disk and the clips that learners read; docs/data-format.md describes the files.

Writing: schema (the files), codecs (frames), table and spool (an episode on its way), index, shard_writer, writer.
Reading: storage (where files are), blocks (rows and frames by ranges), episodes (the files as arrays), clips (random
windows), latents; mixing (several datasets), loader (reading ahead).
"""
