"""Self-contained HTML page of finished runs: `page.render_report`, called by scripts/report.py."""
