# syntax=docker/dockerfile:1
# The worker's image. The Python version is the one that the tests run on.
FROM python:3.11.14-slim-bookworm AS build
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1
COPY requirements-server.lock /build/
RUN python -m venv /opt/sandhold \
    && /opt/sandhold/bin/pip install --no-deps --require-hashes -r /build/requirements-server.lock

FROM python:3.11.14-slim-bookworm
RUN useradd --uid 10001 --user-group --no-create-home --shell /usr/sbin/nologin sandhold \
    && install --directory --owner sandhold --group sandhold --mode 0755 /data
COPY --from=build /opt/sandhold /opt/sandhold
COPY LICENSE worker.py /app/
COPY sandhold /app/sandhold
COPY workflows /app/workflows
COPY activities /app/activities
ENV PATH=/opt/sandhold/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    SANDHOLD_DATA_DIR=/data \
    SANDHOLD_HEALTH_ADDRESS=127.0.0.1:8081
WORKDIR /app
# Another user can be named when the container is started: it needs to write in /data/storage alone.
USER 10001:10001
VOLUME /data
# Healthy means that Temporal sees this worker poll both of its queues.
HEALTHCHECK --interval=10s --timeout=5s --start-period=30s --retries=3 \
    CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8081/healthz', timeout=4)"]
# SIGTERM lets running activities finish; give the container 30 s to stop.
CMD ["python", "worker.py"]
