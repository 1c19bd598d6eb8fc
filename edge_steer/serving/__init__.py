"""The engine for other programs: OpenAI, llama-server and Ollama clients, each request with its own steering."""
