"""Speed and memory, measured in whole processes and given as ratios within one run."""
