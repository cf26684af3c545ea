# One image for web, workers, scheduler, migrations and the simulator; docker-compose.yml says which command each runs.
# No secret is needed to build it, and none is in it.

FROM python:3.13-slim AS build
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
WORKDIR /src
RUN python -m venv /opt/billing
# The lock file first: this layer is rebuilt only when a dependency changes.
COPY requirements-image.lock ./
RUN /opt/billing/bin/pip install --no-deps --require-hashes -r requirements-image.lock
COPY pyproject.toml README.md ./
COPY billing billing
COPY workers workers
COPY migrations migrations
RUN /opt/billing/bin/pip install --no-deps --no-build-isolation --no-index . \
    && /opt/billing/bin/pip uninstall --yes --quiet pip

FROM python:3.13-slim
RUN groupadd --gid 10001 billing \
    && useradd --uid 10001 --gid billing --no-create-home --home-dir /nonexistent --shell /usr/sbin/nologin billing
COPY --from=build /opt/billing /opt/billing
ENV PATH=/opt/billing/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 BILLING_LOG_FORMAT=json
# Root owns the code; the process can read it and write nowhere but /tmp.
USER 10001:10001
WORKDIR /tmp
EXPOSE 8000
STOPSIGNAL SIGTERM
CMD ["uvicorn", "billing.web:create_app", "--factory", "--host", "0.0.0.0", "--port", "8000"]
