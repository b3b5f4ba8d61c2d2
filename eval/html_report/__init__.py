"""Run folders -> one self-contained HTML page: `page.render_report`; see scripts/report.py."""
