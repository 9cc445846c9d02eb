"""Recordings on their way in and out: importing, checking, publishing, and how shards of work are dealt to actors."""
