//! Small vocabularies made by hand.

use realm_tokenizer::Vocab;

/// Markup of the small vocabularies, at their end: control, control, user-defined.
pub(crate) const MARKUP: [(&str, i32); 3] = [("<|bos|>", 3), ("<|eot_id|>", 3), ("<user>", 4)];

/// A byte-level vocabulary: all 256 bytes, some merges, [`MARKUP`].
pub(crate) fn byte_level(pre: &str) -> Vocab {
    let mut vocab = Vocab {
        model: "gpt2".into(),
        pre: Some(pre.into()),
        tokens: (0..=255).map(|byte| byte_char(byte).to_string()).collect(),
        add_bos: Some(true),
        ..Vocab::default()
    };
    for (left, right) in [
        ("Ġ", "t"),
        ("h", "e"),
        ("Ġt", "he"),
        ("a", "a"),
        ("aa", "aa"),
        ("Ġ", "Ġ"),
        ("ĠĠ", "ĠĠ"),
        ("Ċ", "Ċ"),
        ("1", "2"),
        ("Ã", "©"),
        ("ð", "Ł"),
        ("ðŁ", "ĺ"),
    ] {
        vocab.tokens.push(format!("{left}{right}"));
        vocab.merges.push(format!("{left} {right}"));
    }
    vocab.types = vec![1; vocab.tokens.len()];
    finish(vocab)
}

/// A SentencePiece vocabulary: `<unk>`, all 256 bytes, some pieces, [`MARKUP`].
pub(crate) fn spm() -> Vocab {
    let mut tokens = vec![("<unk>".to_owned(), 0.0, 2)];
    tokens.extend((0..=255).map(|byte| (format!("<0x{byte:02X}>"), 0.0, 6)));
    for (piece, score) in [
        ("▁", -20.0),
        ("t", -21.0),
        ("h", -22.0),
        ("e", -23.0),
        ("a", -24.0),
        // `x` is no token by itself.
        ("xx", -25.0),
        ("é", -26.0),
        ("▁t", -1.0),
        ("he", -2.0),
        ("▁the", -3.0),
        ("▁▁", -4.0),
        ("▁▁▁▁", -5.0),
        // Equal scores: the leftmost merge goes first.
        ("ab", -6.0),
        ("ba", -6.0),
        ("aa", -6.0),
        ("aab", -7.0),
        ("aba", -0.5),
        ("😀", -9.0),
    ] {
        tokens.push((piece.to_owned(), score, 1));
    }
    finish(Vocab {
        model: "llama".into(),
        scores: tokens.iter().map(|token| token.1).collect(),
        types: tokens.iter().map(|token| token.2).collect(),
        tokens: tokens.into_iter().map(|token| token.0).collect(),
        ..Vocab::default()
    })
}

/// A WordPiece vocabulary: `[UNK]`, `[CLS]`, `[SEP]`, some pieces, [`MARKUP`].
pub(crate) fn word_piece() -> Vocab {
    let special = ["[UNK]", "[CLS]", "[SEP]"];
    let pieces = [
        "▁a", "a", "aa", "▁b", "b", "▁the", "he", "▁t", "t", "▁he", "x", "▁x", "▁1", "2", "1",
        "▁é", "▁e", "e", "▁.", "▁'", "▁s", "▁中", "▁<", "▁>", "▁[", "▁]", "▁|", "▁▁", "▁😀",
    ];
    finish(Vocab {
        model: "bert".into(),
        types: special.iter().map(|_| 3).chain(pieces.iter().map(|_| 1)).collect(),
        tokens: special.iter().chain(&pieces).map(|&text| text.to_owned()).collect(),
        unk: Some(0),
        cls: Some(1),
        sep: Some(2),
        ..Vocab::default()
    })
}

fn finish(mut vocab: Vocab) -> Vocab {
    let first = vocab.tokens.len() as u32;
    for (text, kind) in MARKUP {
        vocab.tokens.push(text.into());
        vocab.types.push(kind);
    }
    if !vocab.scores.is_empty() {
        vocab.scores.resize(vocab.tokens.len(), 0.0);
    }
    if vocab.model != "bert" {
        vocab.bos = Some(first);
        vocab.eos = Some(first + 1);
    }
    vocab
}

/// GPT-2's character for a byte, computed anew.
fn byte_char(byte: u8) -> char {
    let printable = |byte: &u8| matches!(byte, b'!'..=b'~' | 161..=172 | 174..=255);
    if printable(&byte) {
        return char::from(byte);
    }
    let index = (0..byte).filter(|byte| !printable(byte)).count();
    char::from_u32(256 + index as u32).unwrap()
}
