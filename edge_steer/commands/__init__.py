"""One file a command: parse, call, print.

Takes click's values, calls the library, prints. What a command does, a function of the other wings does.

main      the door: edge-steer, its groups
run       run
chat      chat
serve     serve
build     demo, build
pairs     pairs generate, rewrite, check, show, contrast
extract   extract
sweep     sweep, plot, table
vectors   import, export, vector
eval      eval, compare, perplexity, lm-eval
parity    parity
models    convert, quantize, info
"""
