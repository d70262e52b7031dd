#!/bin/bash
export PYTHONPATH=/root/typed-trial/src OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 PYTHONDONTWRITEBYTECODE=1 PATH=/work/main/.venv/bin:$PATH
exec nice -n 5 /work/main/.venv/bin/python "$@"
