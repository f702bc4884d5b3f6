"""The registered model: images and questions in, answers out. MLflow runs this file when it loads the model."""

from __future__ import annotations

import base64
import binascii
import io
import warnings
from typing import Any

import mlflow
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import INVALID_PARAMETER_VALUE
from PIL import Image

from amvl_core.contracts.method import control_token
from amvl_core.contracts.sample import IMAGE_PLACEHOLDER
from amvl_core.data.encode import MAX_ASPECT

BATCH = 16

# MLflow asks for type hints of its own kind on `predict`; the schema is the registered signature.
warnings.filterwarnings("ignore", message=".*Add type hints to the `predict` method")


class AmvlModel(mlflow.pyfunc.PythonModel):
    """Columns `image` (an encoded picture: bytes, or base64 text) and `question` -> a list of answers.

    The model's configuration in MLflow has the settings it was evaluated with: `max_new_tokens`, `tau`, `seed`.
    """

    def load_context(self, context: Any) -> None:
        """Loads the weights and the settings, once."""
        from amvl_core.eval.predict import Answerer

        self.answerer = Answerer.from_pretrained(context.artifacts["model"])
        self.settings = context.model_config

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
    """The encoded picture in one cell, checked by decoding it; base64 is decoded first, as text or as its bytes.

    MLflow hands `dataframe_records` over decoded, `inputs` and `instances` as the bytes of the base64 text. No encoded
    picture is made of base64's letters alone, so the two cannot be confused.
    """
    if isinstance(value, (str, bytes)):
        try:
            value = base64.b64decode(value, validate=True)
        except (binascii.Error, ValueError) as error:
            if isinstance(value, str):
                raise _refused(f"row {row}: image is text that is not base64 ({error})") from error
    if not isinstance(value, (bytes, bytearray)):
        raise _refused(f"row {row}: image must be bytes of a picture or base64 text, not {type(value).__name__}")
    try:
        with Image.open(io.BytesIO(value)) as image:
            width, height = image.size
            image.load()
    except Exception as error:  # on damaged bytes each of Pillow's decoders raises what it likes
        raise _refused(f"row {row}: image is no picture that can be decoded ({type(error).__name__})") from error
    if max(width, height) > MAX_ASPECT * min(width, height):
        raise _refused(f"row {row}: image has {width} x {height} pixels, one side over {MAX_ASPECT} times the other")
    return bytes(value)


def check_question(question: Any, row: int) -> str:
    """The question; the place of its image comes first where `<image>` does not say otherwise."""
    if not isinstance(question, str) or not question.strip():
        raise _refused(f"row {row}: question must be a text that is not empty")
    if (places := question.count(IMAGE_PLACEHOLDER)) > 1:
        raise _refused(f"row {row}: question has {places} {IMAGE_PLACEHOLDER} for one image")
    if token := control_token(question):
        raise _refused(f"row {row}: question contains {token!r}, which the model reads as a control token")
    return question


def _refused(message: str) -> MlflowException:
    return MlflowException(message, error_code=INVALID_PARAMETER_VALUE)


mlflow.models.set_model(AmvlModel())
