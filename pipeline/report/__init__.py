"""The stage that puts runs on one self-contained page."""

from pipeline.report.stage import ReportConfig, write_report

__all__ = ["ReportConfig", "write_report"]
