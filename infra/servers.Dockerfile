# Prefect's and MLflow's servers in the versions that this repository is tested with.
FROM python:3.11.13-slim-bookworm
COPY constraints.txt /constraints.txt
RUN pip install --no-cache-dir -c /constraints.txt prefect mlflow boto3 "fastapi>=0.139,<0.151" psycopg2-binary==2.9.10
RUN useradd --create-home amvl
USER amvl
