"""Small tokenizers, as fixtures for whoever imports them into a conftest."""

from __future__ import annotations

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

CORPUS = [
    "What are the symptoms of a fever? Rest, water and a doctor if it lasts.",
    "Question: how do I block my lost card?\nAnswer: call the bank at once.",
    "Fièvre, Kopfschmerzen, 头痛, головная боль 🤒",
]

CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{{ message['content'] | trim }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def make_tokenizer(
    special: tuple[str, ...] = (), *, bos: bool = False, chat_template: str | None = None, **names
) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE of a few hundred tokens."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<s>", "</s>", *special],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(CORPUS, trainer)
    if bos:
        bpe.post_processor = processors.TemplateProcessing(
            single="<s> $A", special_tokens=[("<s>", bpe.token_to_id("<s>"))]
        )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bpe, **{"bos_token": "<s>", "eos_token": "</s>", **names}
    )
    tokenizer.chat_template = chat_template
    return tokenizer


@pytest.fixture(scope="session")
def plain() -> PreTrainedTokenizerFast:
    """No template, no padding token."""
    return make_tokenizer()


@pytest.fixture(scope="session")
def turns() -> PreTrainedTokenizerFast:
    """Has the user, assistant and end tokens, and puts a beginning token before each text."""
    return make_tokenizer(("<|user|>", "<|assistant|>", "<|end|>"), bos=True)


@pytest.fixture(scope="session")
def chat() -> PreTrainedTokenizerFast:
    """Has a chat template whose turns end with a token that is not the end of text."""
    return make_tokenizer(
        ("<|im_start|>", "<|im_end|>"),
        chat_template=CHAT_TEMPLATE,
        extra_special_tokens=["<|im_start|>", "<|im_end|>"],
    )
