"""Recordings on disk and the clips that learners read.

Read in this order: schema (the files), writer, episodes (the files as arrays), clips (random windows), latents.
"""
