"""One file a command: parse, call, print.

Takes click's values, calls the library, prints. What a command does, a function of the other wings does. Commands that
keep a model answering are in `frontends`.

main      the door: edge-steer, its groups
build     demo, build
pairs, contrast   pairs generate, rewrite, check, show, contrast
extract   extract
train     train rloo, show
sweep     sweep, plot, table
vectors   import, export, vector
lens      lens
eval      eval, compare, perplexity
parity    parity
models    convert, quantize, info
"""
