"""The model in PyTorch.

Takes Hugging Face files or a GGUF, gives completions, logits and states in float32. It knows nothing of llama.cpp.

model          the door: a causal language model as a Backend and a Recorder
adapter        an adapter of PEFT merged into the weights
gguf_weights   the weights of a GGUF, dequantised
vocabulary     text to tokens, conversations, where texts end
hooks          forward hooks that read and steer the blocks
packing        answers that share a prompt in one row
precision      threads, and float64 for a while
decoding       rows being answered token by token
"""
