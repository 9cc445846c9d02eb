"""`dreamer4 dashboard`: how fast stage 4 is and why, in the browser and in Grafana."""
