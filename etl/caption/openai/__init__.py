"""Captioning over endpoints that speak OpenAI's protocol: vLLM, SGLang, Ollama, LM Studio, OpenAI itself.

    captioner       the backend: a `Captioner` over all endpoints
    address         where the endpoints are, and their keys
    request_format  the requests that each of them takes
    responses       what their answers mean
    model_names     what a model is called, and whether another one answers
    concurrency     how many requests at once one bears
    endpoint        one endpoint: the exchange, and what it serves
    endpoint_state  how it is treated: healthy, paused, unhealthy, given up
    pool            the items shared among all

Nothing here imports the model's libraries.
"""
