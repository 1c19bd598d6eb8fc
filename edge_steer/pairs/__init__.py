"""Contrastive pairs and how they are made.

Takes a running model, an endpoint or files; gives pairs, each with its figures. It loads no model and makes no
vector.

pair          the value and its file
solutions     a model's own
rules         what a rewriter is told
rewrite       solutions in fewer, fuller steps
endpoint      an OpenAI-compatible server
checks        which pairs pass
criteria      what they must satisfy
likelihood    NLL under the model they are for
numbers       what a rewrite keeps
contrasts     pairs of other kinds
controls      pairs that change something else
"""
