//! Scratch.
mod common;
use common::small;
use realm_tokenizer::*;
use std::time::Instant;
#[test]
fn ids() {
    let Ok(dir) = std::env::var("TOK_DIR") else { return };
    let input = std::fs::read_to_string(format!("{dir}/in")).unwrap();
    for line in std::fs::read_to_string(format!("{dir}/models")).unwrap().lines() {
        let (name, path) = line.split_once(' ').unwrap();
        let t = common::tokenizer(path.as_ref());
        for (flag, add_special, parse_special) in [("00", false, false), ("11", true, true)] {
            let mut out = String::new();
            for text in input.split_terminator('\x01') {
                match t.encode(text, EncodeOptions { add_special, parse_special }) {
                    Ok(ids) => out += &format!("{ids:?}\n"),
                    Err(e) => out += &format!("{e}\n"),
                }
            }
            std::fs::write(format!("{dir}/ids.{name}.{flag}"), out).unwrap();
        }
    }
}
#[test]
fn big() {
    let Ok(len) = std::env::var("TOK_BIG") else { return };
    let len: usize = len.parse().unwrap();
    let mut s = 1u64;
    let mut r = || { s = s.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407); (s >> 33) as usize };
    let w = ["the", " quick", " brown", " fox", " 123", "\n", " it's", ", ", " Wörld", "中文", " xyzzy", "."];
    let words: String = (0..len / 4).map(|_| w[r() % w.len()]).collect();
    let texts = [("a", "a".repeat(len)), ("space", " ".repeat(len)), ("digit", "7".repeat(len)), ("newline", "\n".repeat(len)), ("é", "é".repeat(len / 2)), ("words", words), ("-", "-".repeat(len)), ("han", "中".repeat(len/3))];
    let root = common::reference().unwrap();
    let mut all: Vec<(String, Tokenizer)> = ["llama-spm", "llama-bpe", "gpt-2", "qwen2", "deepseek-llm", "falcon", "starcoder", "bert-bge"].iter().map(|n| (n.to_string(), common::tokenizer(&root.join(format!("vocab/ggml-vocab-{n}.gguf"))))).collect();
    let mut vocab = common::vocab(&root.join("vocab/ggml-vocab-qwen2.gguf"));
    for pre in ["default", "qwen35", "ufakzeka", "laguna", "minicpm5", "seed-coder", "bailingmoe", "exaone-moe", "deepseek-coder", "deepseek-v3", "spark2_5", "youtu", "tekken", "gpt-4o", "bloom", "viking", "chameleon", "glm4", "dbrx"] {
        vocab.pre = Some(pre.into());
        vocab.add_bos = Some(false);
        all.push((format!("qwen2/{pre}"), Tokenizer::new(vocab.clone()).unwrap()));
    }
    let _ = small::spm;
    for (name, t) in &all {
        let mut line = format!("{name:18}");
        for (what, text) in &texts {
            let start = Instant::now();
            let ids = t.encode(text, EncodeOptions { add_special: true, parse_special: true }).unwrap();
            let e = start.elapsed().as_secs_f32();
            let start = Instant::now();
            t.decode(&ids, DecodeOptions::default()).unwrap();
            line += &format!(" {what}: {e:.2}/{:.2}s {}", start.elapsed().as_secs_f32(), ids.len());
        }
        println!("{line}");
    }
    println!("{}", std::fs::read_to_string("/proc/self/status").unwrap().lines().filter(|l| l.starts_with("VmHWM")).collect::<String>());
}
