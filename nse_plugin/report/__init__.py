"""Reports for people: tables, figures and a self-contained HTML page."""
