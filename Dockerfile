# The course in JupyterLab. For the CPU, on Intel, AMD and Arm:
#   docker build --tag registration-course .
#   docker run --rm -it --publish 127.0.0.1:8888:8888 registration-course
# For an NVIDIA GPU (PyPI's build of PyTorch for Linux brings CUDA's libraries; the host needs NVIDIA's container toolkit):
#   docker build --build-arg TORCH_INDEX=https://pypi.org/simple --tag registration-course:cuda .
#   docker run --rm -it --gpus all --publish 127.0.0.1:8888:8888 registration-course:cuda
FROM python:3.13.5-slim-bookworm

# git and make are for those who work in the container; the course itself calls neither.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends git make \
    && rm -rf /var/lib/apt/lists/*

RUN useradd --create-home --uid 1000 student && install --directory --owner=1000 /home/student/course
USER 1000
WORKDIR /home/student/course
ENV VIRTUAL_ENV=/home/student/venv \
    PATH=/home/student/venv/bin:$PATH \
    PIP_NO_CACHE_DIR=1 \
    PYTHONUNBUFFERED=1

# The packages first: they change more rarely than the course. PyTorch's version is the lock's, its build the index's.
COPY --chown=1000 requirements-lock.txt ./
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
RUN python -m venv "$VIRTUAL_ENV" \
    && pip install --quiet "$(grep '^torch==' requirements-lock.txt)" --index-url "$TORCH_INDEX" \
    && pip install --quiet --requirement requirements-lock.txt

COPY --chown=1000 . .
RUN pip install --quiet --no-deps --editable . && mkdir -p data runs

EXPOSE 8888
CMD ["python", "-m", "jupyterlab", "--ip=0.0.0.0", "--no-browser", "--ServerApp.root_dir=/home/student/course", "notebooks/00_start_here.ipynb"]
