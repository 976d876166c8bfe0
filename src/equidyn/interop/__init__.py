"""The originals' weights and golden records: one file per system maps the original's names to ours."""

from equidyn.interop.golden import Outcome, Record, read_record, verify

__all__ = ["Outcome", "Record", "read_record", "verify"]
