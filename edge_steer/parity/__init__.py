"""Is a Backend what the reference is?

Takes a reference (running, or saved in a file) and another Backend, gives figures, findings and a verdict. It loads
no model and writes no certificate.

texts             token ids to compare on
baseline, saved   the reference's side, running or from a file
mechanism         is the vector added at the same place?
divergence        how far are next-token probabilities apart?
effect            does steering move both alike?
tolerances        what is allowed of each type
findings          figures held against it
measure           one file, piece by piece, resumable
compare           all of it for one file, judged
"""
