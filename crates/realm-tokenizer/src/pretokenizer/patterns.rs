//! The pre-tokenizers by name: llama.cpp's table (`src/llama-vocab.cpp`, by `tokenizer.ggml.pre`)
//! as patterns without look-ahead.
//!
//! Some published patterns tell upper from lower case. llama.cpp can do so in ASCII only, and where
//! it asks for `\p{Lu}` it means `\p{L}`; that is what these patterns say outright.

/// One pass over the text: at each place the first alternative that matches makes a piece; what
/// none matches makes pieces too.
pub(super) struct Pass {
    pub(super) alternatives: &'static [&'static str],
    /// The last alternative is `\s+` and means `\s+(?!\S)|\s+`.
    pub(super) run: bool,
}

/// A pre-tokenizer.
pub(super) struct Entry {
    pub(super) names: &'static [&'static str],
    pub(super) passes: &'static [&'static Pass],
    /// A word that is a token as a whole is that token, whatever the merges say.
    pub(super) ignore_merges: bool,
    /// Whether a text starts with the BOS token where the file does not say.
    pub(super) add_bos: bool,
}

impl Entry {
    const fn new(names: &'static [&'static str], passes: &'static [&'static Pass]) -> Self {
        Self { names, passes, ignore_merges: false, add_bos: false }
    }

    const fn ignore_merges(self) -> Self {
        Self { ignore_merges: true, ..self }
    }

    const fn add_bos(self) -> Self {
        Self { add_bos: true, ..self }
    }
}

/// A pass whose pieces are those of one pattern and what is between them.
const fn isolate(pattern: &'static [&'static str]) -> Pass {
    Pass { alternatives: pattern, run: false }
}

/// A pass that ends in white space.
const fn words(alternatives: &'static [&'static str]) -> Pass {
    Pass { alternatives, run: true }
}

/// `'s`, `'LL`, … . Spelled out: `(?i:'s)` would also match the long s, U+017F.
macro_rules! contraction {
    () => {
        "(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])"
    };
}
/// Letters with a character before them that is no number or line break.
const WORD: &str = r"[^\r\n\p{L}\p{N}]?\p{L}+";
const SYMBOLS: &str = r" ?[^\s\p{L}\p{N}]+[\r\n]*";
const LINES: &str = r"\s*[\r\n]+";
const SPACES: &str = r"\s+";

const GPT2: Pass =
    words(&["'s|'t|'re|'ve|'m|'ll|'d", r" ?\p{L}+", r" ?\p{N}+", r" ?[^\s\p{L}\p{N}]+", SPACES]);
const LLAMA3: Pass = words(&[contraction!(), WORD, r"\p{N}{1,3}", SYMBOLS, LINES, SPACES]);
const QWEN2: Pass = words(&[contraction!(), WORD, r"\p{N}", SYMBOLS, LINES, SPACES]);
/// As [`QWEN2`], but combining marks belong to the letters.
const QWEN35: Pass = words(&[
    contraction!(),
    r"[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+",
    r"\p{N}",
    r" ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*",
    LINES,
    SPACES,
]);
const UFAKZEKA: Pass = words(&[WORD, r"\p{N}", SYMBOLS, LINES, SPACES]);
const MINICPM: Pass = words(&[contraction!(), WORD, r"\p{N}+", SYMBOLS, LINES, SPACES]);
const SEED_CODER: Pass =
    words(&[contraction!(), WORD, r"\p{N}", r" ?[^\s\p{L}\p{N}\r\n]+", LINES, SPACES]);
const BAILING: Pass = words(&[contraction!(), WORD, r"\p{N}", SYMBOLS, r"\s*[\r\n]", SPACES]);
/// Words go on over single spaces.
const EXAONE_MOE: Pass = words(&[
    contraction!(),
    r"[^\r\n\p{L}\p{N}]?(?:\p{L}\p{M}*(?: \p{L}\p{M}*)*)+",
    r"\p{N}",
    r" ?[^\s\p{L}\p{N}]+[\r\n/]?",
    r"\s*[\r\n]",
    SPACES,
]);
/// A word ends where a letter of `a-z` is followed by one of `A-Z`.
const TEKKEN: Pass = words(&[
    r"[^\r\n\p{L}\p{N}]?[\p{L}--[a-z]]*[\p{L}--[A-Z]]+",
    r"[^\r\n\p{L}\p{N}]?[\p{L}--[a-z]]+[\p{L}--[A-Z]]*",
    r"\p{N}",
    r" ?[^\s\p{L}\p{N}]+[\r\n/]*",
    LINES,
    SPACES,
]);
const GPT4O: Pass = words(&[
    concat!(r"[^\r\n\p{L}\p{N}]?[\p{L}--[a-z]]*[\p{L}--[A-Z]]+", contraction!(), "?"),
    concat!(r"[^\r\n\p{L}\p{N}]?[\p{L}--[a-z]]+[\p{L}--[A-Z]]*", contraction!(), "?"),
    r"\p{N}{1,3}",
    r" ?[^\s\p{L}\p{N}]+[\r\n/]*",
    LINES,
    SPACES,
]);
const YOUTU: Pass = words(&[
    concat!(r"[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+", contraction!(), "?"),
    r"\p{N}",
    r" ?[^\s\p{L}\p{N}]+[\r\n/]*",
    LINES,
    SPACES,
]);
const DEEPSEEK3: Pass = words(&[
    r"[!-/:-@\[-`{-~][A-Za-z]+",
    r"[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+",
    r" ?[\p{P}\p{S}]+[\r\n]*",
    LINES,
    SPACES,
]);
const SPARK: Pass = words(&[
    r"[!-/:-@\[-`{-~][A-Za-z]+",
    r"[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+",
    r" ?[\p{P}\p{S}]+",
    r"[\r\n]",
    SPACES,
]);

const PUNCTUATION: Pass = isolate(&[r"[\p{P}$+<=>^~|]+"]);
const PUNCTUATION_AND_GRAVE: Pass = isolate(&[r"[\p{P}$+<=>^~|`]+"]);
const NUMBERS: Pass = isolate(&[r"\p{N}+"]);
const NUMBER: Pass = isolate(&[r"\p{N}"]);
const THREE_NUMBERS: Pass = isolate(&[r"\p{N}{1,3}"]);
const THREE_DIGITS: Pass = isolate(&["[0-9][0-9][0-9]"]);
const LINE_BREAK: Pass = isolate(&[r"[\r\n]"]);
const WHOLE_LINES: Pass = isolate(&[r"[^\n]+|\n+"]);
/// Letters that have a case, but for some scripts and blocks (Mtavruli, the mathematical ones, …).
const CASED: Pass = isolate(&[concat!(
    r"\s?[[\p{Lu}\p{Ll}\p{Lt}]--[\x{560}-\x{588}\x{10C7}-\x{10FF}\x{1C80}-\x{1C8F}",
    r"\x{2D00}-\x{2D2F}\x{A790}-\x{AB6F}\x{10500}-\x{105FF}\x{16E40}-\x{1DFFF}]]+"
)]);
const ASCII_AND_WIDE: Pass = isolate(&[concat!(
    r"\s?[!-/:-~\x{FF01}-\x{FF0F}\x{FF1A}-\x{FF5E}",
    r"\x{2018}-\x{201F}\x{3001}\x{3002}]+"
)]);
const SPACES_AT_END: Pass = isolate(&[r"\s+$"]);
const EAST_ASIAN: Pass = isolate(&[r"[[\x{800}-\x{9FA5}\x{AC00}-\x{D7FF}]--\s]+"]);
const HAN_AND_KANA: Pass = isolate(&[r"[\x{4E00}-\x{9FA5}\x{3040}-\x{30FF}]+"]);
const LETTERS: Pass = isolate(&[r"\s?\p{L}+"]);
const MARKS_OF_WRITING: Pass = isolate(&[r"\s?\p{P}+"]);
const BETWEEN_SENTENCE_MARKS: Pass = isolate(&[r" ?[^(\s|.,!?…。，、।۔،)]+"]);
const YOUTU_SCRIPTS: Pass = isolate(&[
    r"[\x{AC00}-\x{D7A3}\x{3131}-\x{318E}]+",
    r"[！…“”‘’—：；，\x{3001}-\x{303F}\x{FE30}-\x{FE4F}]+",
    r"[\x{3105}-\x{312F}]+",
    r"[\x{4E00}-\x{9FA5}\x{3040}-\x{30FF}]+",
]);
const CHAMELEON: [Pass; 4] = [
    isolate(&["<sentinel:[0-9]+>"]),
    isolate(&["IMGIMG[A-I]{1,4}Z"]),
    isolate(&[r"[\t\n]", "    ", "  "]),
    isolate(&[r"[\p{P}!-/:-@\[-`{-~]"]),
];

pub(super) const ENTRIES: &[Entry] = &[
    // What llama.cpp falls back to when a file names no pre-tokenizer.
    Entry::new(&["default"], &[&PUNCTUATION, &GPT2, &NUMBERS, &THREE_DIGITS]),
    Entry::new(
        &[
            "gpt-2",
            "gpt2",
            "phi-2",
            "olmo",
            "mpt",
            "jais",
            "exaone4",
            "gigachat",
            "a.x-4.0",
            "mellum",
            "trillion",
            "granite-docling",
        ],
        &[&GPT2],
    ),
    Entry::new(
        &["llama-bpe", "llama3", "llama-v3", "falcon3", "falcon-h1", "pixtral", "midm-2.0", "lfm2"],
        &[&LLAMA3],
    )
    .ignore_merges()
    .add_bos(),
    Entry::new(&["dbrx", "smaug-bpe", "chatglm-bpe"], &[&LLAMA3]),
    Entry::new(&["glm4", "glm5"], &[&LLAMA3]).ignore_merges(),
    Entry::new(
        &[
            "qwen2",
            "deepseek-r1-qwen",
            "kormo",
            "f2llmv2",
            "megrez",
            "stablelm2",
            "hunyuan",
            "solar-open",
            "grok-2",
        ],
        &[&QWEN2],
    ),
    Entry::new(&["qwen35"], &[&QWEN35]),
    Entry::new(&["ufakzeka"], &[&UFAKZEKA]),
    Entry::new(&["laguna"], &[&WHOLE_LINES, &QWEN2]),
    Entry::new(&["minicpm5"], &[&THREE_NUMBERS, &MINICPM]).ignore_merges(),
    Entry::new(&["seed-coder"], &[&SEED_CODER]),
    Entry::new(&["bailingmoe", "bailingmoe2", "llada-moe"], &[&BAILING]),
    Entry::new(&["exaone-moe"], &[&EXAONE_MOE]),
    Entry::new(
        &[
            "starcoder",
            "refact",
            "command-r",
            "smollm",
            "codeshell",
            "exaone",
            "minerva-7b",
            "mellum2",
        ],
        &[&NUMBER, &GPT2],
    ),
    Entry::new(&["falcon"], &[&PUNCTUATION_AND_GRAVE, &GPT2, &THREE_DIGITS]),
    Entry::new(
        &["deepseek-llm"],
        &[&LINE_BREAK, &CASED, &ASCII_AND_WIDE, &SPACES_AT_END, &EAST_ASIAN, &NUMBERS],
    ),
    Entry::new(
        &["deepseek-coder"],
        &[&LINE_BREAK, &LETTERS, &MARKS_OF_WRITING, &EAST_ASIAN, &NUMBER],
    ),
    Entry::new(
        &["deepseek-v3", "hunyuan-dense", "joyai-llm", "hy_v4"],
        &[&THREE_NUMBERS, &HAN_AND_KANA, &DEEPSEEK3],
    ),
    Entry::new(&["spark2_5"], &[&THREE_NUMBERS, &HAN_AND_KANA, &SPARK, &NUMBER]),
    Entry::new(&["youtu"], &[&YOUTU_SCRIPTS, &YOUTU]).ignore_merges(),
    Entry::new(&["tekken"], &[&TEKKEN]).ignore_merges().add_bos(),
    Entry::new(&["gpt-4o", "llama4", "kanana2", "talkie", "minimax-m2"], &[&GPT4O]),
    Entry::new(&["poro-chat", "bloom", "gpt3-finnish"], &[&BETWEEN_SENTENCE_MARKS]),
    Entry::new(&["viking"], &[&BETWEEN_SENTENCE_MARKS, &NUMBER]),
    Entry::new(
        &["chameleon"],
        &[&CHAMELEON[0], &CHAMELEON[1], &CHAMELEON[2], &NUMBER, &CHAMELEON[3], &GPT2],
    )
    .add_bos(),
];
