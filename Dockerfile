# syntax=docker/dockerfile:1
# MAE3D for NVIDIA GPUs: the locked packages in /opt/mae3d, DeepSpeed's FusedAdam compiled in, the code in /src. Runs as any user,
# on a read-only root, and passes every command and signal on (docker/entry.py).
#
#   docker build -t mae3d .
#   docker run --rm --gpus all --ipc=host --user "$(id -u):$(id -g)" -v /data:/data -v /runs:/runs mae3d \
#       deepspeed launch/pretrain.py --config launch/recipes/k400_vit_large.yaml --data.shards /data/shards --run.dir /runs/a
#   docker run --rm --gpus all --ipc=host --user 12345:12345 --read-only --tmpfs /tmp:exec mae3d python -m launch.doctor --path /tmp
#
# `docker stop -t 600` leaves ten minutes for the last checkpoint. Without --ipc=host, give --shm-size=8g: NCCL needs /dev/shm.
# Several nodes, one container each (NODE_RANK counts from 0, hosts.txt holds one "name slots=8" a line):
#   docker run --rm --gpus all --ipc=host --network host -v /data:/data -v /runs:/runs mae3d \
#       deepspeed --hostfile /runs/hosts.txt --no_ssh --node_rank "$NODE_RANK" --master_addr "$MASTER" launch/pretrain.py ...
# Apptainer:
#   apptainer build mae3d.sif docker-daemon://mae3d:latest
#   apptainer run --nv --bind /data,/runs --pwd /src mae3d.sif deepspeed launch/pretrain.py ...

# The CUDA of the locked torch (cuda-toolkit in requirements.lock; tests/repository/test_docker.py compares), both stages.
# devel: nvcc builds FusedAdam here.
FROM nvidia/cuda:13.2.1-devel-ubuntu24.04 AS build

# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends g++ make python3-dev python3-venv \
    && rm -rf /var/lib/apt/lists/*

WORKDIR /src
ENV VENV=/opt/mae3d PATH=/opt/mae3d/bin:$PATH PIP_NO_CACHE_DIR=1

# The packages change less often than the code, so they are a layer of their own. The build sees no GPU: DS_ACCELERATOR and the
# list of architectures (Ampere, Ada, Hopper, Blackwell) say what a GPU would. Nothing is left to compile at run time.
COPY Makefile requirements.lock setup.cfg ./
ARG TORCH_CUDA_ARCH_LIST="8.0;8.6;8.9;9.0;10.0;12.0+PTX"
RUN DS_ACCELERATOR=cuda DS_BUILD_FUSED_ADAM=1 make deps

COPY docker/trim.py docker/
RUN python docker/trim.py curate dask medical s3 tensorboard

# base: the wheels bring every CUDA library but the driver's, which the container toolkit mounts.
FROM nvidia/cuda:13.2.1-base-ubuntu24.04

# g++ and Python's headers: --train.compile builds its kernels, and triton their launcher, at run time.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends ca-certificates g++ libpython3-dev python3 \
    && rm -rf /var/lib/apt/lists/*

WORKDIR /src
ENV PATH=/opt/mae3d/bin:$PATH
COPY --from=build /opt/mae3d /opt/mae3d

# The code last: a change of it is a layer of a few MB. With it come the lists of what the image carries, and their licences.
COPY . .
RUN pip install --no-cache-dir --no-deps --no-build-isolation -e . \
    && pip check \
    && python -m compileall -q docker launch mae3d pipelines preprocess \
    && python docker/contents.py /usr/share/doc/mae3d

# Any user id: a home that everyone can write to, and a name for those that /etc/passwd does not know (torch asks for one).
ENV HOME=/tmp USER=mae3d LOGNAME=mae3d PYTHONUNBUFFERED=1 \
    NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility,video

ENTRYPOINT ["python", "/src/docker/entry.py"]
CMD ["python", "-m", "launch.doctor", "--path", "/tmp"]
