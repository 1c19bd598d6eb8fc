"""The commands that put a steered model to use: answers, a chat, a server, the harness.

Takes click's values, gives answers to a person or to another program. Commands that make or measure are in `commands`.

run       run
chat      chat
serve     serve
lm_eval   lm-eval
"""
