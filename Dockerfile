# docker build --tag caption-etl .
# docker run --rm --init --gpus all --volume "$PWD:/work" --user "$(id -u):$(id -g)" caption-etl run manifest.jsonl.gz -o captions.jsonl
# For a driver before 580 (docs/operations.md): --build-arg TORCH_INDEX=https://download.pytorch.org/whl/cu126
FROM python:3.12-slim

# Triton compiles a kernel at its first launch, with a C compiler and Python's headers, which this image has.
RUN apt-get update \
    && apt-get install --yes --no-install-recommends gcc libc6-dev \
    && rm -rf /var/lib/apt/lists/*

ARG TORCH_INDEX=https://pypi.org/simple
WORKDIR /src
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY etl etl
COPY tui tui
RUN pip install --no-cache-dir --constraint constraints.txt --extra-index-url "$TORCH_INDEX" .

# Whoever runs it, weights and compiled kernels have a place.
ENV HOME=/work
WORKDIR /work
ENTRYPOINT ["etl"]
CMD ["--help"]
