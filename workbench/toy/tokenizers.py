"""The two small tokenizers: byte-level BPE in which every word of the rules is one token and any text encodes."""

from random import Random

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from workbench.toy.tasks import pair

VOCABULARY = 1800  # an upper bound: merging ends when every word is one token
CONTEXT_LENGTH = 256  # tokens; far above any toy prompt
SENTINELS = [f"<extra_id_{number}>" for number in range(8)]
PROMPT_WORDS = "Summarize the dialogue. Summary: "  # known words, although no pretraining task uses them

# White space belongs to the token before it. A prompt that ends in a space therefore keeps its tokens when a response
# follows, and a word at the start of a response is the same token as at the start of a line.
PATTERN = r"'(?:s|t|re|ve|m|ll|d) ?|\p{L}+ ?|\p{N} ?|[^\s\p{L}\p{N}]+\s*|\s+"


def train_tokenizer(special: list[str]) -> Tokenizer:
    """Train a BPE tokenizer on the pretraining texts, with `special` tokens first."""
    tokenizer = Tokenizer(models.BPE())
    split = pre_tokenizers.Split(Regex(PATTERN), behavior="isolated")
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, byte_level])
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    random = Random("tokenizer")
    texts = [prompt + target for prompt, target in (pair(random) for _ in range(20_000))]
    tokenizer.train_from_iterator(texts + [PROMPT_WORDS] * 100, trainer)
    return tokenizer


def t5_tokenizer() -> PreTrainedTokenizerFast:
    """Return T5's tokenizer: pad 0, EOS 1 after every text, unk 2, then the sentinels."""
    tokenizer = train_tokenizer(["<pad>", "</s>", "<unk>", *SENTINELS])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A </s>", pair="$A </s> $B </s>", special_tokens=[("</s>", 1)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        eos_token="</s>",
        unk_token="<unk>",
        extra_special_tokens=SENTINELS,
        model_max_length=CONTEXT_LENGTH,
        clean_up_tokenization_spaces=False,
        model_input_names=["input_ids", "attention_mask"],
    )


def gpt2_tokenizer() -> PreTrainedTokenizerFast:
    """Return GPT-2's tokenizer: one special token as BOS, EOS and padding, and none added to texts."""
    end = "<|endoftext|>"
    return PreTrainedTokenizerFast(
        tokenizer_object=train_tokenizer([end]),
        bos_token=end,
        eos_token=end,
        unk_token=end,
        pad_token=end,
        model_max_length=CONTEXT_LENGTH,
        clean_up_tokenization_spaces=False,
        model_input_names=["input_ids", "attention_mask"],
    )
