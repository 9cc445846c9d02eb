"""Ray clusters of several nodes on one machine, real but for the distance: for drills and for a workstation."""
