"""What it costs: timings against baselines, in one run, kept as JSON under bench/results/<machine>/."""
