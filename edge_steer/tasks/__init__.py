"""Problems, how they are asked, how answers are judged, and a Backend's completions as rows.

Takes the name of a task or a task.toml, and a Backend; gives frozen tasks and rows. It knows no runtime and no
figure.

load           a task by its name or file
task           the value
published      benchmarks fetched from their pinned sources
calibration    problems to learn from, without those of evaluations
wordproblems   the generated task of the bundled model
answers        is an answer right?
grading        answers judged in worker processes
rows           every completion a row, graded and scored
protocols      how each paper asks, and how it grades
"""
