"""A run as one HTML file: `milp-ray report` and `milp-ray watch` (docs/report.md)."""
