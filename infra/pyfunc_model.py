"""The registered model: images and questions in, answers out. MLflow runs this file when it loads the model."""

from __future__ import annotations

import warnings
from typing import Any

import mlflow
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import INVALID_PARAMETER_VALUE

from amvl_core.contracts.method import control_token
from amvl_core.contracts.sample import IMAGE_PLACEHOLDER, VIDEO_PLACEHOLDER
from amvl_core.data.encode import MAX_ASPECT
from amvl_core.data.pixels import PictureError, decode, from_base64
from amvl_core.eval.score import folded

BATCH = 16

# MLflow asks for type hints of its own kind on `predict`; the schema is the registered signature.
warnings.filterwarnings("ignore", message=".*Add type hints to the `predict` method")


class AmvlModel(mlflow.pyfunc.PythonModel):
    """Columns `image` (an encoded picture: bytes, or base64 text) and `question` -> a list of answers.

    The model's configuration in MLflow has the settings it was evaluated with: `max_new_tokens`, `tau`, `seed`,
    and for a model that writes latent blocks `latent_mode` and `latent_steps`. `gpus` is how many GPUs it lies on.
    """

    def load_context(self, context: Any) -> None:
        """Loads the weights and the settings, once."""
        from amvl_core.eval.predict import Answerer

        loading = {"latent_mode": None, "latent_steps": None, "gpus": 1}
        given = {name: context.model_config.get(name, default) for name, default in loading.items()}
        self.answerer = Answerer.from_pretrained(context.artifacts["model"], **given)
        self.settings = {name: value for name, value in context.model_config.items() if name not in loading}

    def predict(self, context, model_input, params=None):  # type: ignore[no-untyped-def]
        """One answer a row; an MlflowException (status 400) names the row that cannot be answered."""
        missing = {"image", "question"} - set(model_input.columns)
        if missing:
            raise _refused(f"missing column {', '.join(sorted(missing))}; give one row per question: image, question")
        images = [[read_image(value, row)] for row, value in enumerate(model_input["image"])]
        questions = [check_question(value, row) for row, value in enumerate(model_input["question"])]
        answers: list[str] = []
        for start in range(0, len(questions), BATCH):
            batch = slice(start, start + BATCH)
            answers += self.answerer.answer(images[batch], questions[batch], **self.settings)
        return answers


def read_image(value: Any, row: int) -> bytes:
    """The encoded picture in one cell, checked by decoding it.

    Text is base64, in lines or not, or a `data:` URL of it. Bytes are a picture, or that text as bytes.
    """
    data = _encoded(value, row)
    try:
        width, height = decode(data).size
    except PictureError as error:
        why = type(error.__cause__).__name__ if error.__cause__ else error
        raise _refused(f"row {row}: image is no picture that can be decoded ({why})") from error
    if max(width, height) > MAX_ASPECT * min(width, height):
        raise _refused(f"row {row}: image has {width} x {height} pixels, one side over {MAX_ASPECT} times the other")
    return data


def _encoded(value: Any, row: int) -> bytes:
    if isinstance(value, str):
        try:
            return from_base64(value)
        except ValueError as error:
            raise _refused(f"row {row}: image is text that is not base64 ({error})") from error
    if not isinstance(value, (bytes, bytearray)):
        raise _refused(f"row {row}: image must be bytes of a picture or base64 text, not {type(value).__name__}")
    data = bytes(value)
    # Of all pictures, only those that Netpbm writes as text are made of base64's letters; their third byte is a blank.
    if data[2:3].isspace():
        return data
    try:
        return from_base64(data.decode("ascii"))
    except ValueError:
        return data


def check_question(question: Any, row: int) -> str:
    """The question; the place of its image comes first where `<image>` does not say otherwise."""
    if not isinstance(question, str) or not folded(question.replace(IMAGE_PLACEHOLDER, "")).strip():
        raise _refused(f"row {row}: question must be a text that is not empty")
    if (places := question.count(IMAGE_PLACEHOLDER)) > 1:
        raise _refused(f"row {row}: question has {places} {IMAGE_PLACEHOLDER} for one image")
    if VIDEO_PLACEHOLDER in question:
        raise _refused(f"row {row}: question contains {VIDEO_PLACEHOLDER}, and there is no video")
    if token := control_token(question):
        raise _refused(f"row {row}: question contains {token!r}, which the model reads as a control token")
    return question


def _refused(message: str) -> MlflowException:
    return MlflowException(message, error_code=INVALID_PARAMETER_VALUE)


mlflow.models.set_model(AmvlModel())
