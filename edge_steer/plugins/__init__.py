"""edge-steer inside other tools: the lm-evaluation-harness, Ray and pytest.

lm_eval_model: a steered GGUF as a model of the harness.  ray_workers: the units of a sweep on a cluster.
pytest_parity: a fixture that holds a file against its reference.
"""
