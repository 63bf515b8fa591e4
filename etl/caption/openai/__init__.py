"""Captioning over endpoints that speak OpenAI's protocol: vLLM, SGLang, Ollama, LM Studio, OpenAI itself.

    captioner    the backend: a `Captioner` over all endpoints
    address      where the endpoints are, and their keys
    dialect      the requests that each of them takes
    answers      what their answers mean
    names        what a model is called, and whether another one answers
    pace         how many requests at once one bears
    endpoint     one endpoint: the exchange, and what it serves
    member       how it is treated: open, paused, set aside
    pool         the items shared among all

Nothing here imports the model's libraries.
"""
