"""A conversation whose steering can be changed between two answers.

Takes a running engine, vectors by name and messages, gives completions. It knows no terminal and no HTTP.

conversation   what is said, what steers it, comparison
history        what was said
saved          a conversation's file
figures        what answers took
"""
