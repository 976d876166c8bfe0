"""A finished run as pictures: one self-contained HTML page with tables, curves and moving 3D trajectories."""

from equidyn.report.leaderboard import write_leaderboard
from equidyn.report.page import write_report

__all__ = ["write_leaderboard", "write_report"]
