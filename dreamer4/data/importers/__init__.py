"""Recordings in other people's formats, as episodes. docs/importing.md says what each format is and by what rules.

Read in this order: importer (what they have in common), steps (what they yield), then any family.
"""
