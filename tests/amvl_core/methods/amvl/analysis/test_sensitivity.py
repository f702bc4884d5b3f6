import io

import torch
from PIL import Image

from amvl_core.methods.amvl.analysis.sensitivity import permutation_shifts, question_columns
from amvl_core.methods.amvl.config import AmvlMethod
from amvl_core.methods.amvl.probes import Prober
from tests.amvl_core.methods.amvl.test_probes import items
from tests.shards import sample_of
from tests.tiny import LATENT, amvl_model


def plain(colour: str) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (64, 32), colour).save(buffer, "PNG")
    return buffer.getvalue()


def test_the_words_of_a_question_are_found_between_the_template() -> None:
    model, processor = amvl_model()
    encoder = Prober(model, processor, AmvlMethod()).encoder
    tokenizer = processor.tokenizer
    template = tokenizer(encoder.prompt(""))["input_ids"]
    ids = tokenizer(encoder.prompt("What colour is the circle?"))["input_ids"]
    columns = question_columns(ids, template)
    assert tokenizer.decode(ids[columns.start : columns.stop]) == "What colour is the circle?"
    assert len(question_columns(template, template)) == 0


def test_what_stays_the_same_when_it_is_permuted_moves_nothing() -> None:
    """Words that are all the same, an image of one colour: the shifts are rounding; those of real ones are not."""
    model, processor = amvl_model()
    prober = Prober(model, processor, AmvlMethod())
    same = sample_of("same", "<image>" + "," * 12, "red", [plain("red")])
    shifts = permutation_shifts(prober, [same, *items()], seed=0)
    assert shifts.image.shape == shifts.text.shape == (5, LATENT.num_slots)
    assert shifts.text[0].max() < 1e-12
    assert shifts.image[0].max() < 1e-6
    assert shifts.text[1:].min() > 1e-4
    assert shifts.image[1].min() > 1e-4
    assert shifts.image[3].isnan().all()  # the sample without an image


def test_the_order_is_that_of_the_seed_and_the_sample() -> None:
    model, processor = amvl_model()
    prober = Prober(model, processor, AmvlMethod())
    together = permutation_shifts(prober, items(), seed=0)
    alone = permutation_shifts(prober, items()[3:], seed=0)
    torch.testing.assert_close(together.text[3:], alone.text, rtol=1e-9, atol=1e-12)
    assert not torch.allclose(permutation_shifts(prober, items(), seed=1).text, together.text)
