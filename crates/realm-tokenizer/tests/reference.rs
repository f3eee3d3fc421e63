//! Real vocabularies against ids recorded from llama.cpp.

mod common;

use std::fs;

use realm_tokenizer::{DecodeOptions, EncodeOptions, Tokenizer, Vocab};

/// The vocabularies of the folder, each with a test below.
const VOCABULARIES: [&str; 9] = [
    "bert-bge",
    "deepseek-llm",
    "falcon",
    "gpt-2",
    "llama-bpe",
    "llama-spm",
    "phi-3",
    "qwen2",
    "starcoder",
];
/// Cases of each of them.
const CASES: usize = 47;

/// A text and its ids.
type Case = (String, Vec<u32>);

/// Texts and their ids, `add_special` and `parse_special` being false.
fn cases(name: &str) -> Option<(Tokenizer, Vec<Case>)> {
    let folder = common::reference()?.join("vocab");
    let file = folder.join(format!("ggml-vocab-{name}.gguf"));
    let read = |end: &str| fs::read_to_string(format!("{}.{end}", file.display())).unwrap();
    let (texts, ids) = (read("inp"), read("out"));
    let texts = texts.split("\n__ggml_vocab_test__\n").map(str::to_owned).collect::<Vec<_>>();
    let numbers = |line: &str| line.split_whitespace().map(|id| id.parse().unwrap()).collect();
    let ids = ids.split('\n').map(numbers).collect::<Vec<Vec<u32>>>();
    assert_eq!((texts.len(), ids.len()), (CASES, CASES), "{name}");
    Some((common::tokenizer(&file), texts.into_iter().zip(ids).collect()))
}

fn check(name: &str) {
    let Some((tokenizer, cases)) = cases(name) else { return };
    let mut wrong = 0;
    for (text, expected) in &cases {
        let ids = tokenizer.encode(text, EncodeOptions::default()).unwrap();
        if &ids != expected {
            println!("{name}: {text:?}\n  gives {ids:?}\n  not   {expected:?}");
            wrong += 1;
        }
        let back = tokenizer.decode(&ids, DecodeOptions::default()).unwrap();
        if tokenizer.sep().is_none() {
            assert_eq!(&back, text, "{name}: decoded again");
        } else if !ids.contains(&tokenizer.unk().unwrap()) {
            // Words are changed for good, but only once.
            let again = tokenizer.encode(&back, EncodeOptions::default()).unwrap();
            assert_eq!(again, ids, "{name}: {back:?}");
        }
    }
    assert_eq!(wrong, 0, "{name}: {wrong} of {} cases", cases.len());
    println!("{name}: {} cases", cases.len());
}

#[test]
fn every_vocabulary_has_a_test() {
    let Some(root) = common::reference() else { return };
    let names = fs::read_dir(root.join("vocab")).unwrap().filter_map(|entry| {
        let name = entry.unwrap().file_name().into_string().unwrap();
        Some(name.strip_prefix("ggml-vocab-")?.strip_suffix(".gguf")?.to_owned())
    });
    let mut names: Vec<String> = names.collect();
    names.sort();
    assert_eq!(names, VOCABULARIES);
}

#[test]
fn bert_bge() {
    check("bert-bge");
}

#[test]
fn deepseek_llm() {
    check("deepseek-llm");
}

#[test]
fn falcon() {
    check("falcon");
}

#[test]
fn qwen2() {
    check("qwen2");
}

#[test]
fn starcoder() {
    check("starcoder");
}

#[test]
fn llama_spm() {
    check("llama-spm");
}

#[test]
fn phi_3() {
    check("phi-3");
}

#[test]
fn llama_bpe() {
    check("llama-bpe");
}

#[test]
fn gpt_2() {
    check("gpt-2");
}

/// Texts with markup, `add_special` and `parse_special` being true; the ids were recorded from
/// llama.cpp 0c1e57098.
fn check_markup(name: &str, change: impl FnOnce(&mut Vocab), cases: &[(&str, &[u32])]) {
    check_file(&format!("vocab/ggml-vocab-{name}"), change, cases);
}

fn check_file(name: &str, change: impl FnOnce(&mut Vocab), cases: &[(&str, &[u32])]) {
    let Some(root) = common::reference() else { return };
    let mut vocab = common::vocab(&root.join(format!("{name}.gguf")));
    change(&mut vocab);
    let tokenizer = Tokenizer::new(vocab).unwrap();
    for (text, expected) in cases {
        let options = EncodeOptions { add_special: true, parse_special: true };
        assert_eq!(&tokenizer.encode(text, options).unwrap(), expected, "{name}: {text:?}");
    }
}

#[test]
fn llama_spm_markup() {
    let prompt = "<s>[INST] Hi [/INST]</s> a";
    check_markup(
        "llama-spm",
        |_| {},
        &[
            (prompt, &[1, 1, 518, 25580, 29962, 6324, 518, 29914, 25580, 29962, 2, 29871, 263]),
            ("", &[1]),
            ("  <s>", &[1, 1678, 1]),
        ],
    );
}

/// White space after most of this model's special tokens vanishes.
#[test]
fn phi_3_markup() {
    let prompt = "<|user|>\n  Hi there<|end|> \n<|assistant|>\n";
    let mixed = "<s> a</s>  b <|endoftext|> c<unk>d";
    check_markup(
        "phi-3",
        |_| {},
        &[
            (prompt, &[1, 32010, 6324, 727, 32007, 32001]),
            (mixed, &[1, 1, 29871, 263, 2, 289, 29871, 32000, 29871, 274, 0, 270]),
            (" x <|end|>", &[1, 29871, 921, 29871, 32007]),
        ],
    );
}

#[test]
fn llama_bpe_markup() {
    let prompt = "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\nHi <|eot_id|> there";
    let ids = [128000, 128000, 128006, 882, 128007, 271, 13347, 220, 128009, 1070];
    check_markup(
        "llama-bpe",
        |_| {},
        &[(prompt, &ids), ("", &[128000]), ("<|eot_id", &[128000, 27, 91, 68, 354, 851])],
    );
}

/// A text with something of everything.
const MIXED: &str = "It's 12345 km, §7 “x”\r\n\tnaïve CAFÉ's 中文  ";

#[test]
fn qwen2_markup() {
    let prompt = "<|im_start|>user\nHi  there<|im_end|>\n<|im_start|>assistant\n";
    let ids = [151644, 872, 198, 13048, 220, 1052, 151645, 198, 151644, 77091, 198];
    let mixed = [
        2132, 594, 220, 16, 17, 18, 19, 20, 13136, 11, 16625, 22, 1036, 87, 854, 319, 197, 3376,
        37572, 586, 356, 8276, 26789, 594, 72858, 16744, 220, 82639, 318, 6213,
    ];
    check_markup(
        "qwen2",
        |_| {},
        &[
            (prompt, &ids),
            ("a<|endoftext|> b", &[64, 151643, 293]),
            (&format!("{MIXED}<|im_end"), &mixed),
        ],
    );
}

#[test]
fn deepseek_llm_markup() {
    let prompt = "User: Hi  there\n\nAssistant: x<｜end▁of▁sentence｜>";
    let ids = [100000, 5726, 25, 11598, 207, 745, 185, 185, 77398, 25, 1376, 100001];
    let mixed = [
        100000, 1385, 6, 82, 207, 16, 17, 18, 19, 20, 9005, 11, 31425, 22, 207, 790, 87, 976, 188,
        185, 184, 2490, 2865, 313, 9527, 37, 11891, 6, 82, 207, 43757, 243,
    ];
    check_markup(
        "deepseek-llm",
        |_| {},
        &[(prompt, &ids), ("<｜begin▁of▁sentence｜>a", &[100000, 100000, 64]), (MIXED, &mixed)],
    );
}

#[test]
fn falcon_markup() {
    let prompt = "User: Hi  there\n\nFalcon:<|endoftext|> a";
    let ids = [7932, 37, 16588, 204, 629, 193, 193, 49, 268, 1043, 37, 11, 241];
    let mixed = [
        1140, 18, 94, 204, 10963, 2617, 8027, 23, 204, 11805, 34, 204, 488, 99, 486, 195, 193, 192,
        1797, 13062, 298, 6419, 49, 11249, 18, 94, 204, 4344, 10971, 258,
    ];
    check_markup(
        "falcon",
        |_| {},
        &[
            (prompt, &ids),
            (">>ANSWER<< 1234 `x`", &[5, 204, 10963, 31, 204, 75, 99, 75]),
            (MIXED, &mixed),
        ],
    );
}

#[test]
fn starcoder_markup() {
    let prompt = "<fim_prefix>def f(x):\n    <fim_suffix>\n<fim_middle>return  x+12";
    let ids = [1, 610, 315, 45, 125, 731, 294, 3, 222, 2, 620, 244, 837, 48, 54, 55];
    let mixed = [
        1029, 1200, 244, 54, 55, 56, 57, 58, 28072, 49, 28090, 60, 7861, 125, 4842, 455, 221, 3288,
        43727, 606, 409, 5999, 23580, 1200, 16421, 3820, 280,
    ];
    check_markup(
        "starcoder",
        |_| {},
        &[(prompt, &ids), ("a<|endoftext|> b", &[102, 0, 342]), (MIXED, &mixed)],
    );
}

#[test]
fn bert_bge_markup() {
    let hello = [101, 7592, 1010, 2088, 999, 2009, 1005, 1055, 15743, 7668, 1012, 102];
    let odd = "It's 12345 km, §7 “x”\r\n\tnaïve CAFÉ's 中文 가나 𝟙 ﬁ e\u{301}\0\u{AD} x\u{200B}";
    let ids = [
        101, 2009, 1005, 1055, 13138, 19961, 2463, 1010, 1073, 1021, 1523, 1060, 1524, 15743, 7668,
        1005, 1055, 1746, 1861, 1455, 29992, 100, 1984, 1041, 1060, 102,
    ];
    check_markup(
        "bert-bge",
        |_| {},
        &[
            ("Hello, WORLD! It's naïve café.", &hello),
            ("[CLS] a [SEP] b[MASK]", &[101, 101, 1037, 102, 1038, 103, 102]),
            ("", &[101, 102]),
            (odd, &ids),
        ],
    );
}

/// No space in front of a text; markup that the file calls normal is text.
#[test]
fn gemma_markup() {
    let prompt = "<start_of_turn>user\nHi  there<end_of_turn>\n<start_of_turn>model\n";
    let ids = [
        2, 68, 301, 452, 103, 582, 596, 103, 581, 367, 587, 70, 394, 280, 6, 619, 588, 579, 507, 5,
        6, 68, 301, 452, 103, 582, 596, 103, 581, 367, 587, 70, 592, 540, 556, 6,
    ];
    let spaces = [2, 579, 266, 579, 579, 276, 7, 17, 597, 579];
    for model in ["gemma2", "gemma3"] {
        let file = format!("models/{model}/model-f32");
        check_file(&file, |_| {}, &[(prompt, &ids), ("  a   b\n\n\tc ", &spaces), ("", &[2])]);
    }
}

/// What a file that names no pre-tokenizer gets.
#[test]
fn gpt_2_without_pre_tokenizer() {
    let text = "x=12345, \"it's\"  (a+b)^2 … §7";
    let ids = [
        87, 28, 10163, 2231, 11, 220, 1, 270, 6, 82, 1, 220, 220, 7, 64, 10, 65, 8, 61, 17, 220,
        1399, 220, 16273, 22,
    ];
    check_markup(
        "gpt-2",
        |vocab| vocab.pre = None,
        &[(text, &ids), ("<|endoftext|> a", &[50256, 257])],
    );
}

#[test]
fn ends_of_generation() {
    let Some(root) = common::reference() else { return };
    for (name, ends) in [
        ("vocab/ggml-vocab-llama-spm", vec![2]),
        ("vocab/ggml-vocab-phi-3", vec![2, 32000, 32007]),
        ("vocab/ggml-vocab-llama-bpe", vec![128001, 128009]),
        ("vocab/ggml-vocab-gpt-2", vec![50256]),
        ("models/llama-256/model-f32", vec![508, 511]),
    ] {
        let tokenizer = common::tokenizer(&root.join(format!("{name}.gguf")));
        assert_eq!(tokenizer.end_of_generation(), ends, "{name}");
    }
}
