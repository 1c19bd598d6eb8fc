"""Rows to figures: methods compared on tasks, sweeps over layers and strengths, plots.

Takes a running model, tasks and steerings; gives rows, figures, comparisons and a tuned vector. It loads no model.

evaluate             methods on tasks
figures              means, intervals, comparisons and their text
results              a folder of rows
sweep                a vector at every layer and strength
sweep_cells          the grid and the choice
sweep_results        what a sweep gives
units                rows in blocks that survive a kill
harness              two runs of the lm-evaluation-harness
plots, sweep_plots   PNG files
svg                  plots inside a page
"""
