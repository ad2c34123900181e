"""Random models of a few thousand weights, with a byte-level tokenizer, saved to folders."""

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertLMHeadModel,
    ElectraConfig,
    ElectraForPreTraining,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
    PreTrainedTokenizerFast,
    RobertaConfig,
    RobertaForMaskedLM,
)

BOS = "<s>"
VOCABULARY = 257
PARAGRAPH = (
    "The quick brown fox of paragraph {} jumps over the lazy dog, and then again over it.\n\n"
)
CONTENT = "".join(PARAGRAPH.format(index) for index in range(12))


def byte_tokenizer(bos=True):
    """One token a byte, and, as LLaMA's, BOS before the text."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {BOS: 0} | {byte: index for index, byte in enumerate(alphabet, start=1)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    if bos:
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{BOS} $A", special_tokens=[(BOS, 0)]
        )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=BOS)


def llama(positions=256, **changes):
    torch.manual_seed(0)
    settings = {
        "vocab_size": VOCABULARY,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": positions,
        "bos_token_id": 0,
        "eos_token_id": None,
        "initializer_range": 0.3,  # so that the loss is not that of a uniform guess
    }
    return LlamaForCausalLM(LlamaConfig(**settings | changes)).eval()


def gpt2(positions=256):
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=VOCABULARY,
        n_embd=32,
        n_layer=2,
        n_head=4,
        n_positions=positions,
        initializer_range=0.3,
        bos_token_id=0,
        eos_token_id=None,
    )
    return GPT2LMHeadModel(config).eval()


SMALL_ENCODER = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
}


ENCODERS = {  # and a classifier: no causal language models
    "BertForMaskedLM": lambda: BertForMaskedLM(BertConfig(**SMALL_ENCODER)),
    # A class of the causal mapping, but without is_decoder it sees both sides.
    "BertLMHeadModel": lambda: BertLMHeadModel(BertConfig(**SMALL_ENCODER)),
    "ElectraForPreTraining": lambda: ElectraForPreTraining(
        ElectraConfig(**SMALL_ENCODER, embedding_size=32)
    ),
    "RobertaForMaskedLM": lambda: RobertaForMaskedLM(RobertaConfig(**SMALL_ENCODER)),
    "LlamaForSequenceClassification": lambda: LlamaForSequenceClassification(
        LlamaConfig(**SMALL_ENCODER)
    ),
}


def encoder(name):
    torch.manual_seed(0)
    return ENCODERS[name]()


def causal_bert():
    """The same class as a decoder."""
    torch.manual_seed(0)
    return BertLMHeadModel(BertConfig(**SMALL_ENCODER, is_decoder=True)).eval()


def save(folder, model, tokenizer=None, **options):
    model.save_pretrained(folder, **options)
    (tokenizer or byte_tokenizer()).save_pretrained(folder)
    return folder
