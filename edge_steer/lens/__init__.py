"""What a steering vector says in tokens: the logit lens.

Takes a vector and a model's unembedding, gives the tokens that each layer raises and lowers, and what a random vector
would. It loads no model; it may be handed a running one.

unembedding   a model's last matrix and final norm, from a GGUF or from Hugging Face files
weights       tensors of both kinds of files as float32 rows
vocabulary    the text of each token
scores        the scores of every token, and those of random directions
reading       a vector read: the top and bottom tokens of each layer
geometry      norms, cosines between layers, stable rank
in_context    what a steering changes at each layer and position of a prompt
topics        the topics of each layer's tokens, by a language model
text          a reading as text, a file for each layer
page          a reading as a page of HTML
"""
