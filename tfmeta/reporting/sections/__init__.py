"""The parts of a report: each returns its heading and its body."""
