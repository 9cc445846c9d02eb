"""Real environments: `registry` makes them, `planners` play them for recordings, `episode` records one."""
