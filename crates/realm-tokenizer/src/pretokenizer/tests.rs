//! Words of all pre-tokenizers.

use super::*;

fn words<'t>(pre: &str, text: &'t str) -> Vec<&'t str> {
    let pre = PreTokenizer::new(Some(pre)).unwrap();
    pre.split(text).into_iter().map(|range| &text[range]).collect()
}

#[test]
fn gpt2_words() {
    let cases: &[(&str, &[&str])] = &[
        ("Hello world", &["Hello", " world"]),
        ("  two", &[" ", " two"]),
        ("a\n\nb", &["a", "\n", "\n", "b"]),
        ("a \n", &["a", " \n"]),
        ("it's IT'S", &["it", "'s", " IT", "'", "S"]),
        ("x1234 ²", &["x", "1234", " ²"]),
        ("a!?! b", &["a", "!?!", " b"]),
        ("\u{a0}x", &["\u{a0}", "x"]),
    ];
    for (text, expected) in cases {
        assert_eq!(&words("gpt-2", text), expected, "{text:?}");
    }
}

#[test]
fn llama3_words() {
    let cases: &[(&str, &[&str])] = &[
        ("  two", &[" ", " two"]),
        ("a  \n \n  b", &["a", "  \n \n", " ", " b"]),
        ("IT'S it'LL", &["IT", "'S", " it", "'LL"]),
        ("'ſa", &["'ſa"]),
        ("1234567", &["123", "456", "7"]),
        ("(word) !\r\nx", &["(word", ")", " !\r\n", "x"]),
        ("\tx", &["\tx"]),
        ("x \t", &["x", " \t"]),
        // A letter since Unicode 15.1, and one since 16.0.
        ("\u{2EBF0}a", &["\u{2EBF0}a"]),
        ("\u{13A22}\u{13A22}'s", &["\u{13A22}\u{13A22}'", "s"]),
        ("x\u{2003}\u{2003}1", &["x", "\u{2003}", "\u{2003}", "1"]),
    ];
    for (text, expected) in cases {
        assert_eq!(&words("llama-bpe", text), expected, "{text:?}");
    }
}

#[test]
fn default_words() {
    let cases: &[(&str, &[&str])] = &[
        ("a, b", &["a", ",", " b"]),
        ("12345", &["123", "45"]),
        (" 1234567", &[" ", "123", "456", "7"]),
        ("x  ...y", &["x", "  ", "...", "y"]),
    ];
    for (text, expected) in cases {
        assert_eq!(&words("default", text), expected, "{text:?}");
    }
    assert_eq!(words("", "a, 1"), words("default", "a, 1"));
}

/// A name, a text, and what `unicode_regex_split` of llama.cpp 0c1e57098 made of it.
const OTHERS: &[(&str, &str, &[&str])] = &[
    ("qwen2", "12 IT'S\n\n x", &["1", "2", " IT", "'S", "\n\n", " x"]),
    ("qwen2", "'ſ \r\n\r\n  a", &["'ſ", " \r\n\r\n", " ", " a"]),
    ("qwen35", "हिन्दी e\u{301}x \u{301}y", &["हिन्दी", " e\u{301}x", " \u{301}y"]),
    ("ufakzeka", "it's 'x", &["it", "'s", " '", "x"]),
    ("laguna", "a \n\n b\r\n", &["a", " ", "\n\n", " b", "\r", "\n"]),
    ("minicpm5", "12345 x", &["123", "45", " x"]),
    ("seed-coder", "a!\n\nb 12", &["a", "!", "\n\n", "b", " ", "1", "2"]),
    ("bailingmoe", "a \n\n b'D", &["a", " \n\n", " b", "'D"]),
    (
        "exaone-moe",
        "one two  three/\n\n x!/y",
        &["one two", " ", " three", "/\n", "\n", " x", "!/", "y"],
    ),
    ("starcoder", "x12 it's  y ½", &["x", "1", "2", " it", "'s", " ", " y", " ", "½"]),
    (
        "falcon",
        "a`b 1234, it's (x)",
        &["a", "`", "b", " ", "123", "4", ",", " it", "'", "s", " ", "(", "x", ")"],
    ),
    (
        "deepseek-llm",
        " Hello World! naïve ab中文 12345 ҁ՟  ",
        &[" Hello", " World", "!", " na", "ï", "ve", " ab", "中文", " ", "12345", " ҁ", "՟", "  "],
    ),
    (
        "deepseek-llm",
        "«x» \u{3000}。 'a' 한국\r\n",
        &["«", "x", "»", " ", "\u{3000}", "。", " '", "a", "'", " ", "한국", "\r", "\n"],
    ),
    (
        "deepseek-coder",
        "x12 (a_b)\n 中文ab é!",
        &["x", "1", "2", " (", "a", "_", "b", ")", "\n", " ", "中文", "ab", " é", "!"],
    ),
    (
        "deepseek-v3",
        "12345 .abc x+y  \n 漢字かなa!!\n",
        &["123", "45", " .", "abc", " x", "+y", "  \n", " ", "漢字かな", "a", "!!\n"],
    ),
    (
        "spark2_5",
        "12345 .abc !\n\n x",
        &["1", "2", "3", "4", "5", " .", "abc", " !", "\n", "\n", " x"],
    ),
    ("youtu", "안녕ㄱ，。x's 12/\n中", &["안녕ㄱ", "，。", "x's", " ", "1", "2", "/\n", "中"]),
    (
        "tekken",
        "HelloWorld ABCdef iPhone12//\n ÉCOLE",
        &["Hello", "World", " ABCdef", " i", "Phone", "1", "2", "//\n", " É", "COLE"],
    ),
    (
        "gpt-4o",
        "HelloWorld's ABCdef'LL 1234 a/\n\n b",
        &["Hello", "World's", " ABCdef'LL", " ", "123", "4", " a", "/\n\n", " b"],
    ),
    (
        "poro-chat",
        "Hello, world... 12 (a|b)。x",
        &["Hello", ",", " world", "...", " 12", " (", "a", "|", "b", ")。", "x"],
    ),
    ("viking", "Hello, x12", &["Hello", ",", " x", "1", "2"]),
    (
        "chameleon",
        "<sentinel:3>IMGIMGABZ    x12_a",
        &["<", "sentinel", ":", "3", ">", "IMGIMGABZ", "    ", "x", "1", "2", "_", "a"],
    ),
    ("glm4", "1234 x", &["123", "4", " x"]),
];

#[test]
fn words_of_the_others() {
    for (pre, text, expected) in OTHERS {
        assert_eq!(&words(pre, text), expected, "{pre}: {text:?}");
    }
}

/// What llama.cpp 0c1e57098 sets beside the patterns.
#[test]
fn flags_of_the_names() {
    let names = |flag: fn(&patterns::Entry) -> bool| {
        let flagged = ENTRIES.iter().filter(|entry| flag(entry));
        flagged.map(|entry| entry.names[0]).collect::<Vec<_>>()
    };
    let ignore_merges = names(|entry| entry.ignore_merges);
    assert_eq!(ignore_merges, ["llama-bpe", "glm4", "minicpm5", "youtu", "tekken"]);
    assert_eq!(names(|entry| entry.add_bos), ["llama-bpe", "tekken", "chameleon"]);
}

#[test]
fn a_name_stands_once() {
    let mut all = names();
    all.sort_unstable();
    assert!(all.windows(2).all(|pair| pair[0] != pair[1]), "{all:?}");
}

#[test]
fn unknown_name_is_refused_with_the_supported_ones() {
    let error = PreTokenizer::new(Some("qwen99")).unwrap_err().to_string();
    assert!(error.contains("'qwen99'") && error.contains("llama-bpe"), "{error}");
}
