"""Methods side by side: the same streams, the same untouched weights, the same scores.

- :mod:`~nse_plugin.compare.specs`: the syntax of ``--methods``;
- :mod:`~nse_plugin.compare.plan`: a comparison as a grid of cells, and its folder;
- :mod:`~nse_plugin.compare.cells`: one cell, in whichever process;
- :mod:`~nse_plugin.compare.engines`: the cells in order, in processes, or on Ray;
- :mod:`~nse_plugin.compare.results`: the schema of what is written;
- :mod:`~nse_plugin.compare.intervals`: spread over seeds, paired differences;
- :mod:`~nse_plugin.compare.tables`, :mod:`~nse_plugin.compare.pictures`,
  :mod:`~nse_plugin.compare.report`: how it is shown.
"""
