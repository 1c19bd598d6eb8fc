"""Pairs to a steering vector.

Takes a running model and pairs; gives a vector and the figures of each layer. It knows nothing of vector files.

extract   record the states, reduce them to a vector
pooling   the tokens of an answer that are averaged
methods   states to a direction
quality   how good each layer's vector is
"""
