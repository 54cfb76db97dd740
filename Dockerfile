# docker build -t strata .
# docker run --rm -it -v strata-models:/models strata run smollm2
# docker run -d -m 6g -p 8000:8000 -e STRATA_API_KEY=... -v strata-models:/models strata \
#   serve llama3.2:3b --host 0.0.0.0 --memory 5GB
# A limit of the container's memory (-m) is the most that a budget can be.
FROM python:3.12-slim AS build
RUN apt-get update && apt-get install -y --no-install-recommends g++ make && rm -rf /var/lib/apt/lists/*
COPY . /source
RUN pip wheel --no-cache-dir --no-deps --wheel-dir /wheels /source

FROM python:3.12-slim
RUN --mount=from=build,source=/wheels,target=/wheels \
    pip install --no-cache-dir "$(ls /wheels/*.whl)[server]" \
 && useradd --create-home --uid 1000 strata \
 && install -d -o strata /models
ENV STRATA_HOME=/models/strata HF_HOME=/models/huggingface
USER strata
VOLUME /models
EXPOSE 8000
ENTRYPOINT ["strata"]
CMD ["--help"]
