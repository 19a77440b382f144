"""Reports for people: tables, figures and a self-contained HTML page.

- :mod:`~nse_plugin.report.theme`: the colours, light and dark, of figures and pages;
- :mod:`~nse_plugin.report.figures`, :mod:`~nse_plugin.report.charts`: heat maps and charts, one
  function per kind, taking tables of pandas;
- :mod:`~nse_plugin.report.page`: a page of sections, tables and figures in one file;
- :mod:`~nse_plugin.report.run`: a run directory as plain values and tables of pandas;
- :mod:`~nse_plugin.report.run_tables`, :mod:`~nse_plugin.report.run_figures`,
  :mod:`~nse_plugin.report.run_page`: its tables, figures and page.
"""
