"""A conversation whose steering can be changed between two answers.

Takes a running engine, vectors by name and messages, gives completions. It knows no terminal and no HTTP.

conversation   history, steering, comparison
saved          a conversation's file
figures        what answers took
engine         what a conversation needs of one
"""
