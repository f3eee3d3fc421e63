//! Benches of a tiny model.

use std::path::PathBuf;

use clap::Parser;
use serde_json::Value;

use super::*;
use crate::args::{Cli, Command};

fn parse(line: &[&str]) -> BenchArgs {
    let all = [&["realm", "bench", "--device", "cpu", "-t", "1"], line].concat();
    match Cli::try_parse_from(all).unwrap().command {
        Command::Bench(args) => args,
        _ => unreachable!("the command is bench"),
    }
}

fn tiny(kind: &str) -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("tiny.gguf");
    let line = ["realm", "synth", "tiny", path.to_str().unwrap(), "--ctx", "4096", "--type", kind];
    match Cli::try_parse_from(line).unwrap().command {
        Command::Synth(args) => crate::synth::run(&args).unwrap(),
        _ => unreachable!("the command is synth"),
    }
    (folder, path)
}

/// What a bench of the tiny model found; the machine's limits are made up.
fn measure(line: &[&str]) -> (Setting, Bench, Vec<Measured>) {
    measure_file("q4_k_m", line)
}

fn measure_file(kind: &str, line: &[&str]) -> (Setting, Bench, Vec<Measured>) {
    let (_folder, path) = tiny(kind);
    let args = parse(&[&["-m", path.to_str().unwrap()], line].concat());
    let plan = plan(&args).unwrap();
    let model = realm_runtime::Model::open(&path).unwrap();
    let mut device = args.engine.device.open().unwrap();
    let options = options(&args, &plan).unwrap();
    let engine = load::engine(&model, &mut device, &options).unwrap();
    let mut setting = Setting::new(&path, &engine, args.repetitions);
    setting.peak_rss_bytes = PeakMemory::reset().bytes();
    let ceilings = Ceilings::new(1e10, 1e11, "made up".into()).unwrap();
    setting.ceilings = Some(Ceilings { f32_ops_per_second: Some(2e10), ..ceilings });
    let mut bench = Bench::new(engine, model.vocabulary(), args.repetitions, options.times);
    let progress = Progress::new(1);
    let results = plan.tests.iter().map(|test| bench.run(test, &progress).unwrap()).collect();
    (setting, bench, results)
}

#[test]
fn json_has_all_keys() {
    let line =
        ["-p", "20,70", "-n", "4", "-d", "0,40", "-b", "1,3", "--step", "32", "-r", "2", "--ops"];
    let (setting, bench, results) = measure(&line);
    let json: Value =
        serde_json::from_str(&report::json(&setting, bench.graph(), &results)).unwrap();
    let list = json.as_array().unwrap();
    let names: Vec<&str> = list.iter().map(|test| test["test"].as_str().unwrap()).collect();
    let expected = ["pp20", "pp70", "tg4", "tg4x3", "pp20@d40", "pp70@d40", "tg4@d40", "tg4x3@d40"];
    assert_eq!(names, expected);
    for test in list {
        let rates = &test["tokens_per_second"];
        let rate = |name: &str| rates[name].as_f64().unwrap();
        assert!(
            rate("min") > 0.0 && rate("min") <= rate("median") && rate("median") <= rate("max")
        );
        for fraction in ["fraction_of_bandwidth", "fraction_of_peak"] {
            assert!(test[fraction].as_f64().unwrap() > 0.0, "{fraction}");
        }
        assert_eq!(test["threads"], 1);
        assert_eq!(test["device"], "cpu");
        assert!(test["model"].as_str().unwrap().ends_with("tiny.gguf"));
        assert!(test["load_seconds"].as_f64().unwrap() > 0.0);
        if cfg!(target_os = "linux") {
            assert!(test["peak_rss_bytes"].as_u64().unwrap() > 1_000_000);
        }
        let ops = test["ops"].as_array().unwrap();
        let share: f64 = ops.iter().map(|op| op["fraction_of_time"].as_f64().unwrap()).sum();
        assert!((0.2..=1.0).contains(&share), "{share}");
        let output = ops.iter().find(|op| op["op"] == "Linear output").unwrap();
        assert_eq!((&output["nodes"], &output["types"][0]), (&1.into(), &"Q6_K".into()));
    }
}

#[test]
fn work_is_counted_for_each_repetition() {
    let (_, bench, results) =
        measure(&["-p", "20", "-n", "4", "-d", "16", "-b", "2", "--step", "16", "-r", "1"]);
    let matrices: u64 = bench
        .graph()
        .weights()
        .iter()
        .filter(|info| info.rows > 1)
        .map(|info| (info.rows * info.cols) as u64)
        .sum();
    let table = 1024 * 256;
    let [prompt, generation] = &results[..] else { panic!("two tests") };
    assert_eq!((prompt.steps, generation.steps), (2, 4));
    // Two layers of four heads of 64; rows at positions 16.. see themselves and what is before.
    let seen: u64 = (17..=36).sum();
    let expected = 2 * 20 * (matrices - 2 * table) + 2 * table + 2 * 4 * seen * 256;
    assert_eq!(prompt.cost().ops, expected);
    // Both sequences' rows share the weights of four steps.
    let weights = generation.cost().weight_bytes;
    let once: u64 =
        bench.graph().weights().iter().filter_map(|info| info.bytes()).map(|b| b as u64).sum();
    let row = 256 * 144 / 256;
    assert_eq!(weights, 4 * (once - 1024 * row + 2 * row));
}

#[test]
fn tables_say_what_was_reached() {
    let (mut setting, bench, results) = measure(&["-p", "8", "-n", "2", "-r", "1", "--ops"]);
    let table = report::table(&setting, &results);
    assert_eq!(table.lines().count(), 4, "{table}");
    assert!(table.contains("pp8") && table.contains("tg2") && table.contains(" %"), "{table}");
    assert!(
        table.ends_with("cpu, 1 threads: reads 10.0 GB/s, made up 100 GOP/s, f32 20 GOP/s\n"),
        "{table}"
    );
    let ops = ops::table(&setting, bench.graph(), &results[0]);
    for row in
        ["GatedLinear ffn_gate ffn_up", "Linear attn_q attn_k attn_v", "Attention", "between ops"]
    {
        assert!(ops.contains(row), "{row} in {ops}");
    }
    let slow = Ceilings::new(1e9, 1e12, "made up".into());
    let best = Ceilings::best(slow.clone(), setting.ceilings).unwrap();
    assert_eq!((best.bytes_per_second, best.ops_per_second), (1e10, 1e12));
    assert_eq!(Ceilings::best(None, slow.clone()), slow);
    assert_eq!(Ceilings::new(0.0, 1e12, String::new()), None);
    setting.ceilings = None;
    let table = report::table(&setting, &results);
    assert!(table.contains("could not be measured"), "{table}");
    assert!(setting.summary().starts_with("loaded in "));
}

#[test]
fn ops_add_up_to_their_test() {
    let (setting, bench, results) =
        measure(&["-p", "20", "-n", "4", "-d", "3", "--step", "16", "-r", "2", "--ops"]);
    for result in &results {
        let sum: realm_core::cost::Cost =
            ops::groups(&setting, bench.graph(), result).iter().map(|group| group.cost).sum();
        assert_eq!(sum, result.cost() + result.cost(), "{}", result.test);
    }
}

#[test]
fn int8_products_alone_are_held_to_the_int8_peak() {
    for (kind, int8) in [("q8_0", true), ("f16", false)] {
        let line = ["-p", "64", "-n", "0", "-r", "1", "--ops"];
        let (mut setting, bench, results) = measure_file(kind, &line);
        assert_eq!(setting.precision == Precision::Int8, int8, "{kind}");
        let limits = |setting: &Setting| -> Vec<(String, Option<f64>)> {
            let groups = ops::groups(setting, bench.graph(), &results[0]);
            groups.iter().map(|group| (group.name.clone(), group.limit_part())).collect()
        };
        let with = |setting: &mut Setting, ops, float| {
            // Memory without a limit leaves the arithmetic peaks to decide.
            let ceilings = Ceilings::new(1e30, ops, "made up".into()).unwrap();
            setting.ceilings = Some(Ceilings { f32_ops_per_second: float, ..ceilings });
            limits(setting)
        };
        let slow = with(&mut setting, 1e9, Some(1e10));
        let fast = with(&mut setting, 4e9, Some(1e10));
        let unknown = with(&mut setting, 1e9, None);
        for (at, (name, limit)) in slow.iter().enumerate() {
            let product = name.contains("Linear");
            let ratio = fast[at].1.zip(*limit).map(|(fast, slow)| slow / fast);
            let expected = if product && int8 { 4.0 } else { 1.0 };
            if product || name == "Attention" {
                assert!((ratio.unwrap() - expected).abs() < 1e-9, "{kind}, {name}: {ratio:?}");
            }
            assert_eq!(unknown[at].1.is_some(), product && int8, "{kind}, {name}");
        }
        let json: Value =
            serde_json::from_str(&report::json(&setting, bench.graph(), &results)).unwrap();
        assert_eq!(json[0]["precision"], if int8 { "int8" } else { "f32" });
    }
}

/// A bench fails where the engine takes other steps than were counted on. A prompt of a whole step
/// would take two where it started late, one with a token more would take one where it started
/// early.
#[test]
fn prompts_start_at_their_depth() {
    let line = ["-p", "1,16,17,40", "-n", "0", "-d", "0,1,15,16,17,40", "--step", "16", "-r", "1"];
    let (_, _, results) = measure(&line);
    assert_eq!(results.len(), 24);
    for result in &results {
        assert_eq!(result.steps, result.test.tokens().div_ceil(16), "{}", result.test);
    }
    assert_eq!(results[9].test.to_string(), "pp16@d15");
}

#[test]
fn senseless_tests_are_refused() {
    let error = plan(&parse(&["-m", "x", "-p", "0", "-n", "0"])).unwrap_err().to_string();
    assert!(error.contains("-p"), "{error}");
    let args = parse(&["-m", "x", "-p", "512", "--ctx", "100"]);
    let error = options(&args, &plan(&args).unwrap()).unwrap_err().to_string();
    assert!(error.contains("512"), "{error}");
}

/// Texts of an SVG, and how often each element begins and ends.
fn svg_texts(svg: &str) -> Vec<&str> {
    for name in ["svg", "text", "title", "desc"] {
        let begun = svg.matches(&format!("<{name}")).count();
        assert_eq!(begun, svg.matches(&format!("</{name}>")).count(), "{name}");
    }
    let texts = svg.split("<text").skip(1).filter_map(|rest| rest.split_once('>'));
    texts.filter_map(|(_, rest)| rest.split('<').next()).map(str::trim).collect()
}

#[test]
fn pictures_show_roofs_ops_and_tests() {
    let line = ["-p", "20", "-n", "4", "-r", "1", "--plot", "x.svg"];
    let (mut setting, bench, results) = measure(&line);
    setting.model = "folder/a<b&c>.gguf".into();
    let path = Path::new("x.svg");
    let draw = |setting: &Setting, results: &[Measured]| {
        plot::svg(path, setting, bench.graph(), results).unwrap()
    };
    let svg = draw(&setting, &results);
    assert!(
        svg.starts_with("<svg role=\"img\"") && svg.contains("<title>Roofline of a&lt;b&amp;c")
    );
    let texts = svg_texts(&svg);
    let has = |part: &str| texts.iter().any(|text| text.contains(part));
    for part in [
        "Roofline of a&lt;b&amp;c&gt;.gguf",
        "1 threads · int8 products, KV cache f16 · 20",
        "memory: 10.0 GB/s read",
        "made up: 100 GFLOP/s",
        "f32: 20.0 GFLOP/s",
        "pp20: kinds of ops, and the whole prompt",
        "tg4: kinds of ops, and the whole generation",
        "all of pp20",
        "all of tg4",
        "ffn_gate + ffn_up",
        "attn_q + attn_k + attn_v",
        "attention",
        "% of its roof",
        "FLOP/byte",
        "Not drawn",
    ] {
        assert!(has(part), "{part} in {texts:?}");
    }
    // Five kinds of ops and the whole, in both tests, with a name and figures each.
    let rates = texts.iter().filter(|text| text.contains("FLOP/s, ")).count();
    assert_eq!(rates, 2 * 7, "{texts:?}");
    setting.ceilings = None;
    let svg = draw(&setting, &results);
    assert!(svg.contains("could not be measured") && !svg.contains("% of its"));
}

#[test]
fn pictures_do_without_times_of_ops() {
    let (setting, bench, results) = measure(&["-p", "20,30", "-n", "0", "-r", "1"]);
    let path = Path::new("x.svg");
    let svg = plot::svg(path, &setting, bench.graph(), &results).unwrap();
    let texts = svg_texts(&svg);
    assert!(texts.contains(&"all of pp30") && texts.contains(&"pp20: the whole prompt"));
    assert!(!svg.contains("ffn_down") && !svg.contains("Not drawn"), "{texts:?}");
}

#[test]
fn half_precision_takes_at_most_half_the_memory() {
    let (_folder, path) = tiny("q4_k_m");
    let model = realm_runtime::Model::open(&path).unwrap();
    let device = parse(&[]).engine.device.open().unwrap();
    let claims = claims::memory(&model, &**device.backend(), 512);
    let text = claims::table(&claims, "cpu", None);
    assert!(text.contains("2 of 2 claims that were looked at are met"), "{text}");
    assert!(text.contains("weights in F16: ") && text.contains("KV cache in f32: "), "{text}");
}
