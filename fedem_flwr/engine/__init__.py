"""The local round of a cohort: samples, steps, merging, and the compact touched-row tables they work on."""
