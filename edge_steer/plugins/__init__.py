"""edge-steer inside other tools: the lm-evaluation-harness, Ray, pytest and llama-cpp-python.

Takes what each tool hands over, gives it a steered model in its own terms.

lm_eval_model      a steered GGUF as a model of the harness
ray_workers        the units of a sweep on a cluster
pytest_parity      a fixture that holds a file against its reference
llama_cpp_python   steering for a llama_cpp.Llama of your own
"""
