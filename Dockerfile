# One image for every part of a federation: SuperLink, server, nodes and set-up; what a container is, its command says.
#     docker build --tag fedem-flwr:0.1.0 .
#
# Whatever is installed has an exact version and a hash (requirements.lock), torch too where TORCH_BACKEND=pypi: that is
# the build of the general package index, for x86-64 machines one with several gigabytes of GPU libraries. PyTorch keeps
# smaller builds on an index of its own, and TORCH_BACKEND picks one: `cpu` (the default), `cu130`, ... Its hash depends on
# the kind of machine: give it as TORCH_SHA256 (PyTorch's index names it), else the build says that torch goes unchecked.

# The Python that the pins were made with, by its tag. Its bytes are pinned by whoever builds, who can ask for the digest:
#     --build-arg PYTHON_IMAGE=python:3.11.15-slim-bookworm@sha256:...       (`make docker-pins` has the question)
ARG PYTHON_IMAGE=python:3.11.15-slim-bookworm

FROM ${PYTHON_IMAGE} AS build
ARG TORCH_BACKEND=cpu
ARG TORCH_SHA256=
# Compiled here because containers run with a read-only file system. This image's Python is the one to use.
ENV PIP_ROOT_USER_ACTION=ignore UV_COMPILE_BYTECODE=1 UV_LINK_MODE=copy UV_NO_CACHE=1 UV_PYTHON_DOWNLOADS=never \
    VIRTUAL_ENV=/opt/fedem
WORKDIR /build
# Dependencies come first: a change of the source alone leaves this layer, the largest, as it is. All of them have wheels,
# so there is no compiler here either. The environment goes without pip: nothing is installed at run time.
COPY requirements.lock requirements-torch.lock ./
RUN sed -n '/^uv==/,/[^\\]$/p' requirements.lock > uv.lock \
    && python -m pip install --no-cache-dir --no-deps --require-hashes --requirement uv.lock \
    && python -m venv --without-pip "$VIRTUAL_ENV" \
    && uv pip install --require-hashes --no-deps --only-binary :all: --requirements requirements.lock
RUN version="$(sed -n 's/^\(torch==[^ ]*\).*/\1/p' requirements-torch.lock)" \
    && if [ "$TORCH_BACKEND" = pypi ]; then \
        uv pip install --require-hashes --no-deps --only-binary :all: --requirements requirements-torch.lock; \
    elif [ -n "$TORCH_SHA256" ]; then \
        echo "$version --hash=sha256:$TORCH_SHA256" > torch.lock \
        && uv pip install --require-hashes --no-deps --torch-backend "$TORCH_BACKEND" --requirements torch.lock; \
    else \
        echo "WARNING: $version for $TORCH_BACKEND is installed unchecked: give its hash with --build-arg TORCH_SHA256=..." >&2 \
        && uv pip install --no-deps --torch-backend "$TORCH_BACKEND" "$version"; \
    fi
COPY . .
RUN uv pip install --no-deps --no-build-isolation . \
    && "$VIRTUAL_ENV/bin/fedem" --version
# Local rounds are compiled once, for processors of this machine's kind: what a container compiles goes with it. These four
# runs need all of it: products and networks, on rows as they lie and through a merge.
RUN export NUMBA_CACHE_DIR="$VIRTUAL_ENV/compiled" \
    && for method in fedem fedncf; do for mode in replace elastic; do \
        "$VIRTUAL_ENV/bin/fedem" run --quiet --overwrite --method "$method" --rounds 2 --set "merge.mode=$mode" --out /tmp/run \
            || exit 1; \
    done; done \
    && chmod -R u=rwX,go=rX "$NUMBA_CACHE_DIR"

FROM ${PYTHON_IMAGE}
LABEL org.opencontainers.image.title="fedem-flwr" \
      org.opencontainers.image.description="A federated recommender on Flower: SuperLink, server and nodes in one image." \
      org.opencontainers.image.version="0.1.0" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.authors="The fedem-flwr authors"
# Nothing reports home. What libraries want to write beside the work goes to /tmp, the one place that is always writable.
ENV PATH=/opt/fedem/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    FLWR_TELEMETRY_ENABLED=0 \
    FLWR_DISABLE_UPDATE_CHECK=1 \
    FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION=1 \
    RAY_USAGE_STATS_ENABLED=0 \
    HOME=/tmp \
    NUMBA_CACHE_DIR=/opt/fedem/compiled \
    FLWR_HOME=/tmp/flwr \
    MPLCONFIGDIR=/tmp/matplotlib
# A new volume takes over owner and mode of the folder that it is mounted on: these are the places of docker-compose.yml.
# The number is fixed so that volumes stay readable from one build to the next.
RUN groupadd --gid 10001 fedem \
    && useradd --uid 10001 --gid 10001 --no-create-home --home-dir /tmp --shell /usr/sbin/nologin fedem \
    && install --directory --owner 10001 --group 10001 --mode 700 \
        /data /own /runs /setup /state \
        /give/superlink /give/proxy /give/server /give/node-0 /give/node-1 /give/node-2 /give/node-3
COPY --from=build /opt/fedem /opt/fedem
USER 10001:10001
# `fedem run` writes below runs/, which is /runs from here.
WORKDIR /
# Health is asked for by service, in docker-compose.yml: the parts have nothing in common that one check could ask.
ENTRYPOINT ["fedem"]
CMD ["--help"]
