# Every command of vjepa, installed from this checkout.
#   docker build -t vjepa .
#   docker run --rm --gpus all -v "$PWD:/work" vjepa doctor
FROM python:3.12-slim
WORKDIR /opt/vjepa
COPY pyproject.toml setup.cfg README.md LICENSE ./
COPY vjepa vjepa
COPY data data
COPY probes probes
COPY launch launch
COPY configs configs
RUN pip install --no-cache-dir ".[all]" torchvision
WORKDIR /work
ENTRYPOINT ["vjepa"]
CMD ["--help"]
