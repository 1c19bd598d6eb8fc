"""The engine for other programs: OpenAI, llama-server and Ollama clients, each request with its own steering.

Takes a running engine and vectors by name, gives HTTP answers that say what steered them. It needs no PyTorch.

server        the application and its life
loading       what is said while the model loads
worker        the one thread that owns the model
security      who may ask, and how much
bodies        what clients send, checked
questions     checked bodies to requests of the engine
replies       what goes back: streams, errors, timings
openai_api    OpenAI's endpoints
llama_api     llama-server's endpoints
ollama_api    Ollama's endpoints
vectors_api   the vectors of a running server
metrics       counters for Prometheus
"""
