"""The model in llama.cpp."""
