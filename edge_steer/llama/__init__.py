"""The model in llama.cpp.

Takes a GGUF file and requests, gives completions, logits and states. It knows nothing of vector files, tasks or
PyTorch.

engine          the door: one GGUF file as a Backend
scheduler       requests that come at any time: decode first, then admit
sequence        one request on its way through a context
prefix_cache    what is cached, and what another prompt can use of it
context         a context: batches, steered, and their KV cache
hook            rows added to and read from the residual stream
sampler         the sampler chain of one request
grammar         grammars and JSON schemas that an answer obeys
model           a GGUF in memory: tokens, template, shape
chat_template   messages to prompt text
quantizer       llama.cpp's quantiser
library         how llama.cpp was built, and what it complains of
"""
