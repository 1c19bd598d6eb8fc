"""The papers' tables and figures, by their own definitions, with what was measured here beside what they print.

Takes folders of results and a running model; gives scores over seeds, rows of tables, plots. It loads no model.

seeds        one evaluation with several seeds, joined
published    the main tables
cross        trained on one task, tested on another: vector, LoRA, full
families     accuracy over steps and density
perplexity   of texts without their prompt
"""
