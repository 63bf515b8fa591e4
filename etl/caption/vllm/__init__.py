"""Captioning by `vllm serve`, a child of this process on loopback, in an environment of its own.

    captioner  the backend: a `Captioner` over the one endpoint that the child is
    command    where vLLM is, and with what it is started
    tensor_names  what vLLM calls weights otherwise
    server     the child: started, waited for, watched, ended
    keeper     the process between it and us, which ends all of it when we are gone

The exchange itself is that of `etl.caption.openai`.  Nothing here imports the model's libraries, or vLLM.
"""
